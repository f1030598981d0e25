import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from paperworks.data import ImageSource, open_images
from paperworks.errors import InputError


@pytest.fixture
def source() -> ImageSource:
    images = torch.arange(12, dtype=torch.uint8).view(12, 1, 1, 1).expand(12, 3, 4, 5).contiguous()
    return ImageSource.from_tensor(images, torch.arange(12) % 3, name="made", classes=["a", "b", "c"], licence="none")


def test_samples(source: ImageSource) -> None:
    sample = source[5]
    assert isinstance(sample["image"], tv_tensors.Image) and sample["label"] == 2 and sample["key"] == "made/00005"
    assert len(list(source)) == 12 and source[-1]["key"] == "made/00011"
    with pytest.raises(IndexError):
        source[12]


def test_changing_a_sample_leaves_the_source_alone(source: ImageSource) -> None:
    source[5]["image"].fill_(99)
    source.__getitems__([5])[0]["image"].fill_(99)
    source.batch([5])["image"].fill_(99)  # type: ignore[index]
    assert (source[5]["image"] == 5).all()


def test_subset_and_batches_keep_images_and_labels_together(source: ImageSource) -> None:
    part = source.subset([7, 2, 7]).subset([1, 0])
    assert [sample["key"] for sample in part] == ["made/00002", "made/00007"]
    batch = part.batch([1, 0])
    assert batch is not None and batch["image"][:, 0, 0, 0].tolist() == [7, 2] and batch["label"].tolist() == [1, 2]
    assert part.classes == source.classes and part.licence == source.licence
    assert len(source.subset(torch.arange(12) > 8)) == 3
    samples = source.__getitems__([3, 4])
    assert [sample["label"] for sample in samples] == [0, 1] and torch.equal(samples[1]["image"], source[4]["image"])


def test_split_is_stratified_disjoint_and_seeded(source: ImageSource) -> None:
    first, second = source.split(0.75, seed=0)
    assert first.labels is not None and first.labels.bincount().tolist() == [3, 3, 3]
    assert second.labels is not None and second.labels.bincount().tolist() == [1, 1, 1]
    assert not {s["key"] for s in first} & {s["key"] for s in second}
    assert [s["key"] for s in source.split(0.75, seed=0)[1]] == [s["key"] for s in second]
    with pytest.raises(InputError, match="leaves an empty part"):
        source.split(0.01, seed=0)


def test_a_plain_torch_loader_takes_it(source: ImageSource) -> None:
    batch = next(iter(DataLoader(source, batch_size=4)))
    assert batch["image"].shape == (4, 3, 4, 5) and batch["label"].tolist() == [0, 1, 2, 0]


def test_sizes_that_differ_cannot_be_stacked(jpeg_folder: Path, source: ImageSource) -> None:
    mixed = open_images(jpeg_folder)
    assert mixed.batch([0]) is None and not mixed.is_stacked and source.is_stacked
    with pytest.raises(InputError, match="different sizes"):
        _ = mixed.images
    assert source.images.shape == (12, 3, 4, 5)


def test_sources_can_be_sent_to_another_process(jpeg_folder: Path, source: ImageSource) -> None:
    for each in (source, open_images(jpeg_folder), open_images(jpeg_folder, memory=1000)):
        copy = pickle.loads(pickle.dumps(each))
        assert torch.equal(copy[3]["image"], each[3]["image"]) and copy.classes == each.classes and repr(copy) == repr(each)


def test_from_tensor_checks_its_arguments() -> None:
    with pytest.raises(InputError, match="uint8"):
        ImageSource.from_tensor(torch.rand(2, 3, 4, 4), name="made")
    with pytest.raises(InputError, match="2 images but 3 labels"):
        ImageSource.from_tensor(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.arange(3), name="made")
