"""Transformed: a source with a transform whose randomness is a pure function of (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from paperworks.data.seeds import mix, uniforms
from paperworks.data.transforms import Drawn
from paperworks.errors import InputError


class Transformed(Dataset[dict[str, Any]]):
    """Samples of `source` with `image` transformed.

    `transform`: a `Drawn` transform (whole batches at once when the source lies decoded in memory), a torchvision v2
      transform or any function of one tv_tensors.Image; None for none.
    `size`: images per epoch, `len(source)` by default. With more, index i takes image i modulo the source's length, with
      draws of its own: a handful of photos fills any batch.

    torch's global generator is seeded before and restored after each call of a torchvision transform, so neither the number
    of workers nor what else draws from it changes the outcome. Numpy's and Python's global generators are not touched.
    """

    def __init__(self, source: Any, transform: Callable[..., Any] | None, *, seed: int, size: int | None = None):
        if len(source) == 0:
            raise InputError("there are no images to transform")
        if size is not None and size < 1:
            raise InputError(f"size={size}: an epoch needs at least one image")
        self.source = source
        self.transform = transform
        self.seed = seed
        self.size = len(source) if size is None else size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Other draws for the same indices."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not -self.size <= index < self.size:
            raise IndexError(f"index {index} of {self.size}")
        index %= self.size
        return self._change(self.source[index % len(self.source)], index)

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor] | None:
        """The stacked batch at once, equal to the stacked samples; None when the source or the transform cannot."""
        if not isinstance(self.transform, Drawn | None) or not hasattr(self.source, "batch"):
            return None
        indices = [int(index) % self.size for index in indices]
        found = self.source.batch([index % len(self.source) for index in indices])
        if found is None or self.transform is None:
            return found
        draws = uniforms(self.seed, self.epoch, indices, self.transform.draws)
        return found | {"image": self.transform.apply(found["image"], draws)}

    def _change(self, sample: dict[str, Any], index: int) -> dict[str, Any]:
        image = sample["image"]
        if self.transform is None:
            return sample
        if isinstance(self.transform, Drawn):
            draws = uniforms(self.seed, self.epoch, [index], self.transform.draws)
            changed = self.transform.apply(image.as_subclass(Tensor).unsqueeze(0), draws)[0]
            return sample | {"image": tv_tensors.Image(changed)}
        state = torch.get_rng_state()
        try:
            torch.default_generator.manual_seed(mix(self.seed, self.epoch, index))
            return sample | {"image": self.transform(image)}
        finally:
            torch.set_rng_state(state)
