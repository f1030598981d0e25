import pytest
import torch
from timm.data.mixup import mixup_target

from paperworks.data import Mix, soft_labels
from paperworks.data.mixing import _paste
from paperworks.errors import InputError


def made(count: int = 6, side: int = 16) -> dict[str, torch.Tensor]:
    images = torch.arange(count, dtype=torch.float32).view(count, 1, 1, 1).expand(count, 3, side, side) / count
    return {"image": images.contiguous(), "label": torch.arange(count) % 4}


def test_soft_labels_agree_with_timm() -> None:
    labels = torch.tensor([0, 3, 1])
    assert torch.allclose(soft_labels(labels, 4, 0.1), mixup_target(labels, 4, 1.0, 0.1))
    assert torch.equal(soft_labels(labels, 4), torch.eye(4)[labels])


def test_mixup_blends_images_and_labels_by_the_same_share() -> None:
    batch = made()
    mixed = Mix(4, mixup=0.8, cutmix=0, smoothing=0.1)(batch, torch.Generator().manual_seed(1))
    kept = float(
        (mixed["image"][0, 0, 0, 0] - batch["image"][5, 0, 0, 0]) / (batch["image"][0, 0, 0, 0] - batch["image"][5, 0, 0, 0])
    )
    assert 0 < kept < 1
    assert torch.allclose(mixed["image"], batch["image"] * kept + batch["image"].flip(0) * (1 - kept), atol=1e-6)
    assert torch.allclose(mixed["target"], mixup_target(batch["label"], 4, kept, 0.1), atol=1e-6)
    assert torch.equal(batch["image"], made()["image"]) and "target" not in batch


def test_cutmix_pastes_a_box_and_counts_its_pixels() -> None:
    batch = made()
    for seed in range(30):
        mixed = Mix(4, mixup=0, cutmix=1.0, smoothing=0)(batch, torch.Generator().manual_seed(seed))
        pasted = mixed["image"][0, 0] != batch["image"][0, 0]
        assert torch.equal(mixed["image"][0, 0][pasted], batch["image"][5, 0][pasted])
        kept = 1 - float(pasted.float().mean())
        assert torch.allclose(mixed["target"], mixup_target(batch["label"], 4, kept), atol=1e-6)


def test_boxes_are_clipped_at_the_border() -> None:
    images = made(2, 20)["image"]
    mixed, kept = _paste(images, 0.75, 0.0, 0.5)
    assert kept == 1 - 5 * 10 / 400  # half of the 10 x 10 box lies above the image
    assert (mixed[0, 0, :5, 5:15] == 0.5).all() and (mixed[0] != images[0]).sum() == 3 * 50


def test_probability_and_switch() -> None:
    batch = made()
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for seed in range(400):
        image = Mix(4, probability=0.5, switch=0.25)(batch, torch.Generator().manual_seed(seed))["image"]
        row = image[0, 0]
        kind = "none" if torch.equal(image, batch["image"]) else "mixup" if (row == row[0, 0]).all() else "cutmix"
        kinds[kind] += 1
    assert 160 < kinds["none"] < 260 and 110 < kinds["mixup"] < 190 and 20 < kinds["cutmix"] < 80


def test_the_generator_decides_everything() -> None:
    batch = made() | {"image": torch.randint(0, 255, (6, 3, 16, 16), dtype=torch.uint8)}
    first, again, other = (Mix(4)(batch, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first["image"], again["image"]) and torch.equal(first["target"], again["target"])
    assert not torch.equal(first["target"], other["target"])
    assert first["image"].dtype == torch.float32 and first["image"].max() <= 1
    assert torch.allclose(first["target"].sum(1), torch.ones(6))


def test_labels_are_needed() -> None:
    with pytest.raises(InputError, match="mixing needs labels"):
        Mix(4)({"image": torch.rand(2, 3, 4, 4)}, torch.Generator())
