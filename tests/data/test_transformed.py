from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from paperworks.data import ImageSource, Transformed, open_images
from paperworks.data.transforms import Drawn, imagenet_train, train_crop, train_shift
from paperworks.errors import InputError

TRANSFORMS = {
    "crop": train_crop(16, flip=True),
    "imagenet": imagenet_train(16),
    "torchvision": v2.Compose([v2.RandomCrop(16), v2.ColorJitter(0.5, 0.5, 0.5)]),
}


@pytest.fixture(scope="module")
def source() -> ImageSource:
    images = torch.randint(0, 256, (20, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSource.from_tensor(images, torch.arange(20) % 3, name="made")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_sample_is_a_function_of_seed_epoch_and_index(source: ImageSource, name: str) -> None:
    data = Transformed(source, TRANSFORMS[name], seed=5)
    first = data[3]
    data[7], torch.rand(3)
    assert torch.equal(data[3]["image"], first["image"]) and first["label"] == 0 and first["key"] == "made/00003"
    changed = []
    for index in range(20):
        here = data[index]["image"]
        data.set_epoch(1)
        changed.append(not torch.equal(data[index]["image"], here))
        data.set_epoch(0)
        changed.append(not torch.equal(Transformed(source, TRANSFORMS[name], seed=6)[index]["image"], here))
    assert sum(changed) > 36
    assert torch.equal(data[3]["image"], first["image"])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_global_generator_is_left_as_it_was(source: ImageSource, name: str) -> None:
    torch.manual_seed(11)
    want = torch.rand(4)
    torch.manual_seed(11)
    Transformed(source, TRANSFORMS[name], seed=0).__getitems__([1, 2])
    assert torch.equal(torch.rand(4), want)


def test_the_generator_is_restored_after_an_error(source: ImageSource) -> None:
    def fail(_: torch.Tensor) -> None:
        torch.rand(1)
        raise RuntimeError("no")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        Transformed(source, fail, seed=0)[0]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("transform", [train_crop(16, flip=True), train_crop(30), train_shift(24, flip=True), None])
def test_the_batched_path_equals_the_samples(source: ImageSource, transform: Drawn | None) -> None:
    data = Transformed(source, transform, seed=2)
    data.set_epoch(4)
    indices = [19, 0, 7, 7, 12]
    batch, samples = data.batch(indices), data.__getitems__(indices)
    assert batch is not None and torch.equal(batch["image"], torch.stack([s["image"] for s in samples]))
    assert batch["label"].tolist() == [s["label"] for s in samples]


def test_batches_fall_back_where_they_cannot_be_made(source: ImageSource, jpeg_folder: Path) -> None:
    assert Transformed(source, imagenet_train(16), seed=0).batch([0]) is None
    assert Transformed(open_images(jpeg_folder), train_crop(16), seed=0).batch([0]) is None
    assert Transformed([source[0]], train_crop(16), seed=0).batch([0]) is None


@pytest.mark.parametrize("workers", [0, 2])
def test_plain_torch_loaders_get_the_same_for_any_number_of_workers(source: ImageSource, workers: int) -> None:
    data = Transformed(source, imagenet_train(16), seed=1)
    got = torch.cat([batch["image"] for batch in DataLoader(data, batch_size=5, num_workers=workers)])
    assert torch.equal(got, torch.stack([data[index]["image"] for index in range(20)]))


def test_a_longer_epoch_repeats_images_with_other_draws(source: ImageSource) -> None:
    data = Transformed(source.subset([0, 1, 2]), train_crop(12), seed=0, size=64)
    assert len(data) == 64 and data[4]["key"] == "made/00001"
    assert not torch.equal(data[1]["image"], data[4]["image"])
    batch = data.batch(range(64))
    assert batch is not None and torch.equal(batch["image"][4], data[4]["image"])
    with pytest.raises(IndexError):
        data[64]


def test_nothing_to_transform(source: ImageSource) -> None:
    with pytest.raises(InputError, match="no images"):
        Transformed([], None, seed=0)
    with pytest.raises(InputError, match="size=0"):
        Transformed(source, None, seed=0, size=0)
