import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.data import ImageSource, Loader, Transformed, open_images
from paperworks.data.loader import collate
from paperworks.data.transforms import imagenet_train, train_crop
from paperworks.errors import InputError


class Numbers:
    """Samples whose image is their index, and which note the epoch they were asked in."""

    def __init__(self, length: int):
        self.length = length
        self.epoch = -1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": torch.tensor([index]),
            "label": index % 3,
            "epoch": self.epoch,
            "key": "x",
            "caption": f"number {index}",
        }


def rows(batches: list[dict[str, Any]]) -> list[list[int]]:
    return [batch["image"].flatten().tolist() for batch in batches]


def take(loader: Loader, count: int) -> list[dict[str, Any]]:
    stream = loader.forever()
    return [next(stream) for _ in range(count)]


@pytest.fixture(scope="module")
def source() -> ImageSource:
    images = torch.randint(0, 256, (22, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSource.from_tensor(images, torch.arange(22) % 3, name="made")


def test_an_epoch_holds_everything_once_in_a_new_order() -> None:
    loader = Loader(Numbers(22), 4, seed=1, drop_last=False)
    first, second = list(loader), list(loader)
    assert [len(row) for row in rows(first)] == [4, 4, 4, 4, 4, 2] and len(loader) == 6
    for epoch in (first, second):
        assert sorted(itertools.chain(*rows(epoch))) == list(range(22))
    assert rows(first) != rows(second) != rows(list(Loader(Numbers(22), 4, seed=2, drop_last=False)))
    assert rows(list(Loader(Numbers(22), 4, seed=1, drop_last=False))) == rows(first)
    assert {int(e) for b in first for e in b["epoch"]} == {0} and {int(e) for b in second for e in b["epoch"]} == {1}


def test_without_shuffling_the_order_is_kept_and_the_rest_dropped() -> None:
    assert rows(list(Loader(Numbers(10), 4, seed=0, shuffle=False))) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_the_form_of_a_batch() -> None:
    batch = next(iter(Loader(Numbers(6), 3, seed=0, shuffle=False)))
    assert batch["label"].dtype == torch.int64 and batch["label"].tolist() == [0, 1, 2]
    assert batch["caption"] == ["number 0", "number 1", "number 2"] and "key" not in batch
    image = next(iter(Loader(open_images("digits"), 5, seed=0)))["image"]
    assert type(image) is torch.Tensor and image.shape == (5, 1, 8, 8) and image.dtype == torch.uint8


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 4), st.booleans(), st.booleans())
def test_the_shares_of_all_processes_are_the_batch_of_one(
    length: int, share: int, world: int, drop: bool, shuffle: bool
) -> None:
    size = share * world
    if drop and length < size:
        return
    options: dict[str, Any] = {"seed": 3, "drop_last": drop, "shuffle": shuffle}
    alone = rows(take(Loader(Numbers(length), size, **options), 7))
    shares = [rows(take(Loader(Numbers(length), size, rank=rank, world=world, **options), 7)) for rank in range(world)]
    assert [list(itertools.chain(*(part[step] for part in shares))) for step in range(7)] == alone


@pytest.mark.parametrize("transform", [train_crop(12, flip=True), imagenet_train(12)])
def test_any_number_of_workers_gives_the_same_batches(source: ImageSource, transform: Any) -> None:
    def run(workers: int) -> list[dict[str, Any]]:
        return take(Loader(Transformed(source, transform, seed=4), 8, seed=9, workers=workers), 6)  # three epochs

    torch.manual_seed(0)
    alone = run(0)
    for workers in (1, 2):
        for ours, theirs in zip(alone, run(workers), strict=True):
            assert torch.equal(ours["image"], theirs["image"]) and torch.equal(ours["label"], theirs["label"])
    assert torch.equal(torch.rand(2), torch.rand(2, generator=torch.Generator().manual_seed(0)))  # nothing drew from it


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("consumed", [0, 1, 3, 5, 6, 11])
def test_resuming_gives_exactly_what_would_have_followed(source: ImageSource, workers: int, consumed: int) -> None:
    data = Transformed(source, train_crop(12), seed=4)
    whole = take(Loader(data, 4, seed=0, workers=workers), 14)
    loader = Loader(data, 4, seed=0, workers=workers)
    take(loader, consumed)
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    resumed = Loader(data, 4, seed=0)
    resumed.load_state_dict(state)
    for ours, theirs in zip(take(resumed, 14 - consumed), whole[consumed:], strict=True):
        assert torch.equal(ours["image"], theirs["image"]) and torch.equal(ours["label"], theirs["label"])


def test_a_loop_left_early_goes_on_and_loading_goes_back() -> None:
    loader = Loader(Numbers(12), 3, seed=0)
    whole = rows(list(Loader(Numbers(12), 3, seed=0)))
    for _ in loader:
        state = loader.state_dict()
        break
    assert state["cursor"] == 1 and rows(list(loader)) == whole[1:] and loader.state_dict()["epoch"] == 1
    loader.load_state_dict(state)
    assert rows(list(loader)) == whole[1:]


def test_a_state_of_something_else_is_refused() -> None:
    state = Loader(Numbers(12), 3, seed=0).state_dict()
    for other in (Loader(Numbers(13), 3, seed=0), Loader(Numbers(12), 4, seed=0), Loader(Numbers(12), 3, seed=1)):
        with pytest.raises(InputError, match="cannot continue the saved one"):
            other.load_state_dict(state)
    again = Loader(Numbers(12), 3, seed=0, rank=2, world=3)  # another number of processes may continue it
    again.load_state_dict(state)


def test_errors_before_the_first_batch() -> None:
    with pytest.raises(InputError, match=r"^12 images cannot fill a batch of 64: lower batch_size or add images$"):
        Loader(Numbers(12), 64, seed=0)
    assert len(list(Loader(Numbers(12), 64, seed=0, drop_last=False))) == 1
    with pytest.raises(InputError, match="no images"):
        Loader(Numbers(0), 4, seed=0)
    with pytest.raises(InputError, match="batch of 10 cannot be shared equally by 4 processes"):
        Loader(Numbers(12), 10, seed=0, world=4)
    for wrong in ({"rank": 2, "world": 2}, {"workers": -1}):
        with pytest.raises(InputError, match="make no sense"):
            Loader(Numbers(12), 4, seed=0, **wrong)
    with pytest.raises(InputError, match="batch_size=0"):
        Loader(Numbers(12), 0, seed=0)


def test_a_process_without_a_share_gets_an_empty_batch() -> None:
    last = list(Loader(Numbers(9), 8, seed=0, rank=0, world=4, drop_last=False))[-1]
    assert last["image"].shape == (0, 1) and last["label"].shape == (0,) and last["caption"] == []


def test_images_of_several_sizes_need_a_transform(jpeg_folder: Path) -> None:
    source = open_images(jpeg_folder)
    with pytest.raises(InputError, match=r"different sizes \(3x.*use Transformed"):
        list(Loader(source, 8, seed=0))
    batch = next(iter(Loader(Transformed(source, train_crop(32), seed=0), 8, seed=0)))
    assert batch["image"].shape == (8, 3, 32, 32)


def test_samples_must_be_dicts() -> None:
    with pytest.raises(InputError, match="must be a dict"):
        collate([(torch.zeros(1), 0)])  # type: ignore[list-item]
    assert collate([{"x": 1.5}, {"x": 2.0}])["x"].dtype == torch.float32
