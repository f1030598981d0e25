"""What ByteFormer (2306.00238, section 4) does to the bytes of a file before it looks at them: other orders, positions left
out (a camera that keeps few pixels), noise, other values (obfuscation). Files are integers [..., L]; nothing works in place.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from paperworks.errors import InputError

SEED = 2147483647
"""of everything that is drawn once and then the same for all files; the published networks were trained with it"""


# --- orders -----------------------------------------------------------------------------------------------------------


def reverse(x: Tensor) -> Tensor:
    return x.flip(-1)


def cyclic_half(x: Tensor) -> Tensor:
    """The second half comes first; of an odd length the first half is the longer one."""
    return x.roll(x.shape[-1] // 2, -1)


def deinterleave(x: Tensor, stride: int = 1024) -> Tensor:
    """Every `stride`-th byte from the first one on, then every `stride`-th from the second one on, ..."""
    if stride < 1:
        raise InputError(f"stride {stride}: take 1 or more")
    return x[..., (torch.arange(x.shape[-1]) % stride).argsort(stable=True)]


def shuffle_windows(x: Tensor, order: Tensor) -> Tensor:
    """The same order int64 [W] within every W bytes; what is left at the end stays."""
    window = len(order)
    whole = x.shape[-1] // window * window
    shuffled = x[..., :whole].unflatten(-1, (-1, window))[..., order].flatten(-2) if whole else x[..., :0]
    return torch.cat((shuffled, x[..., whole:]), -1)


@functools.cache
def window_order(window: int = 1024) -> Tensor:
    """An order of `window` bytes that is the same every time: int64 [window]."""
    return torch.randperm(window, generator=_fixed())


# --- positions left out -----------------------------------------------------------------------------------------------


@functools.cache
def kept_positions(length: int, share: float) -> Tensor:
    """int64: floor(share x length) positions, the same every time, in their order."""
    if not 0 < share <= 1:
        raise InputError(f"a camera keeps a share of the values above 0 and up to 1, not {share}")
    count = int(share * length)
    return torch.randperm(length, generator=_fixed())[:count].sort().values


def keep_some(x: Tensor, share: float) -> Tensor:
    """The camera of section 4.3: of every file of a length the same values are kept, without telling where they stood."""
    return x[..., kept_positions(x.shape[-1], share)]


# --- values -----------------------------------------------------------------------------------------------------------


@functools.cache
def alphabet() -> Tensor:
    """The value that stands for each byte after obfuscation: a permutation, int64 [256]."""
    return torch.randperm(256, generator=_fixed())


def permuted(x: Tensor) -> Tensor:
    """Every byte by what stands for it in `alphabet`, int64; whoever does not know it cannot read the file."""
    return alphabet()[x.long()]


def add(x: Tensor, noise: Tensor) -> Tensor:
    """Noise on bytes, modulo 256, in the type of x."""
    return ((x.int() + noise.int()) % 256).to(x.dtype)


def uniform_noise(x: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """x with integers from -width to width added."""
    if not 0 <= width < 256:
        raise InputError(f"noise of up to {width}: take 0 to 255")
    return add(x, torch.randint(-width, width + 1, x.shape, generator=generator))


def _fixed() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)
