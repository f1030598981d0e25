"""Batches in a seeded order, the same for any number of workers and processes, resumable in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from paperworks.data.seeds import permutation
from paperworks.errors import InputError

Batch = dict[str, Any]


class Loader:
    """Batches of a map-style data set of dicts: tensors are stacked, numbers become int64 or float32 tensors, other values
    lists; `key` is left out.

    `batch_size` counts the samples of a step over all `world` processes; process `rank` gets its consecutive share of them,
    so the shares of one step put together are the batch of a single process.

    `for batch in loader` yields what is left of the current epoch and moves on to the next one, so a loop that was left
    early continues where it stopped; `loader.forever()` crosses epochs. `state_dict()` says how many batches were handed
    out; after `load_state_dict` the following ones are exactly those that would have followed.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        drop_last: bool = True,
    ):
        if batch_size < 1 or workers < 0 or not 0 <= rank < world:
            raise InputError(f"batch_size={batch_size}, workers={workers}, rank={rank} of world={world} make no sense")
        if batch_size % world:
            raise InputError(
                f"a batch of {batch_size} cannot be shared equally by {world} processes: use a multiple of {world}"
            )
        if len(dataset) == 0:
            raise InputError("there are no images to load")
        if drop_last and len(dataset) < batch_size:
            raise InputError(f"{len(dataset)} images cannot fill a batch of {batch_size}: lower batch_size or add images")
        self.dataset = dataset
        self.order = _Order(len(dataset), batch_size, seed, shuffle, rank, world, drop_last)
        self.workers = workers
        self.epoch = 0
        self.cursor = 0
        """batches of this epoch that were handed out"""
        self._stream: Iterator[Batch] | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        while self.epoch == epoch:
            yield self._next()

    def forever(self) -> Iterator[Batch]:
        while True:
            yield self._next()

    def state_dict(self) -> dict[str, int]:
        order = self.order
        return {
            "epoch": self.epoch,
            "cursor": self.cursor,
            "seed": order.seed,
            "length": order.length,
            "batch_size": order.batch_size,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raises InputError when the state is of another data set, batch size or seed: the order would be another one."""
        for name, here in self.state_dict().items():
            if name not in ("epoch", "cursor") and state.get(name) != here:
                raise InputError(f"this loader cannot continue the saved one: {name} was {state.get(name)} and is {here}")
        self.epoch, self.cursor = state["epoch"], state["cursor"]
        self._stream = None

    def _next(self) -> Batch:
        if self._stream is None:
            self._stream = self._start()
        batch = next(self._stream)
        self.cursor += 1  # before the batch is used: a checkpoint made after its step must not repeat it
        if self.cursor >= len(self):
            self.epoch, self.cursor = self.epoch + 1, 0
        return batch

    def _start(self) -> Iterator[Batch]:
        """An endless stream from (epoch, cursor) on. Workers live as long as the loader, and work ahead across epochs.
        Nothing in the stream refers to the loader: in a reference cycle the workers would be stopped by time-outs only."""
        fetch = _Fetch(self.dataset)
        requests = _Requests(self.order, self.epoch, self.cursor)
        if self.workers == 0:
            return (fetch[request] for request in requests)
        loader: DataLoader[Any] = DataLoader(
            fetch,
            batch_size=None,
            sampler=requests,
            num_workers=self.workers,
            collate_fn=_unchanged,
            generator=torch.Generator().manual_seed(0),  # else it draws from the global one; nothing depends on it
        )
        return iter(loader)


class _Order:
    """Which indices make up a batch: a pure function of the epoch and the batch's number in it."""

    def __init__(self, length: int, batch_size: int, seed: int, shuffle: bool, rank: int, world: int, drop_last: bool):
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world = world
        self.drop_last = drop_last
        self._epoch: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)

    def rows(self, epoch: int, number: int) -> list[int]:
        """This process's consecutive share of a batch."""
        if self._epoch is None or self._epoch[0] != epoch:
            everything = permutation(self.length, self.seed, epoch) if self.shuffle else torch.arange(self.length)
            self._epoch = (epoch, everything)
        whole = self._epoch[1][number * self.batch_size : (number + 1) * self.batch_size]
        return whole[self.rank * len(whole) // self.world : (self.rank + 1) * len(whole) // self.world].tolist()


class _Requests:
    """(epoch, indices) of every batch from a position on, without end: what workers are asked for."""

    def __init__(self, order: _Order, epoch: int, cursor: int):
        self.order = order
        self.epoch = epoch
        self.cursor = cursor

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        epoch, number = self.epoch, self.cursor
        while True:
            yield epoch, self.order.rows(epoch, number)
            number += 1
            if number >= len(self.order):
                epoch, number = epoch + 1, 0


class _Fetch(Dataset[Batch]):
    """Indexed by (epoch, indices); in a worker this is a copy, so the epoch travels with the request."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __getitem__(self, request: tuple[int, list[int]]) -> Batch:
        epoch, indices = request
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        if not indices:  # a process without a share of a last partial batch: a batch of the right form without rows
            return {name: values[:0] for name, values in self._fetch([0]).items()}
        return self._fetch(indices)

    def _fetch(self, indices: list[int]) -> Batch:
        if hasattr(self.dataset, "batch") and (batch := self.dataset.batch(indices)) is not None:
            return batch
        if hasattr(self.dataset, "__getitems__"):
            return collate(self.dataset.__getitems__(indices))
        return collate([self.dataset[index] for index in indices])


def collate(samples: Sequence[dict[str, Any]]) -> Batch:
    """Samples as one batch. Raises InputError when images differ in size."""
    if not isinstance(samples[0], dict):
        raise InputError(
            f"a sample must be a dict with an 'image', not a {type(samples[0]).__name__}: open the data with open_images"
        )
    batch: Batch = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        if name == "key":
            continue
        if isinstance(first, Tensor):
            shapes = {tuple(value.shape): None for value in values}
            if len(shapes) > 1:
                some = " and ".join("x".join(map(str, shape)) for shape in list(shapes)[:2])
                raise InputError(
                    f"{name}s of different sizes ({some}) make no batch: use Transformed(source, train_crop(size), seed=0)"
                )
            batch[name] = torch.stack([value.as_subclass(Tensor) for value in values])
        elif isinstance(first, int | float):
            batch[name] = torch.tensor(values, dtype=torch.float32 if isinstance(first, float) else torch.int64)
        else:
            batch[name] = values
    return batch


def _unchanged(batch: Any) -> Any:
    return batch
