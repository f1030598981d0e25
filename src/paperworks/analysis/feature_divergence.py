"""How differently two sets of images look to each layer of a network (IBN-Net 1807.09441, section 3.2).

Of every channel the mean over a map is taken as a normally distributed number; the divergence of a layer is the symmetric
Kullback-Leibler divergence of its two distributions, averaged over the channels. Between two appearances of the same things it
is large in shallow layers, between different things in deep ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.errors import InputError

FLOOR = 1e-3
"""least variance of a channel, as a share of its layer's mean: one that hardly ever fires must not decide the average"""


def gaussian_divergence(first: Tensor, second: Tensor) -> float:
    """D = KL(A|B) + KL(B|A) of channel means [N, C] and [M, C], averaged over the channels."""
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise InputError(f"channel means are [N, C] and [M, C], not {list(first.shape)} and {list(second.shape)}")
    if min(len(first), len(second)) < 2:
        raise InputError("a variance needs at least two images on both sides")
    (var_a, mean_a), (var_b, mean_b) = (torch.var_mean(values.double(), 0) for values in (first, second))
    floor = max(FLOOR * float((var_a + var_b).mean() / 2), 1e-12)
    var_a, var_b = var_a.clamp(min=floor), var_b.clamp(min=floor)
    gap = (mean_a - mean_b).square()
    return float(((var_a + gap) / (2 * var_b) + (var_b + gap) / (2 * var_a) - 1).mean())


@torch.inference_mode()
def channel_means(
    network: nn.Module, batches: Iterable[Tensor], layers: Sequence[str], forward: Callable[[Tensor], Any] | None = None
) -> dict[str, Tensor]:
    """{layer: [N, C]}: the mean over the map of every channel of the named modules' outputs, for every image.

    network: holds the modules; it runs in evaluation mode and is left in its own. forward: what runs it on a batch, where that
    is more than `network(batch)`.
    """
    known = dict(network.named_modules())
    missing = [name for name in layers if name not in known]
    if missing or not layers:
        raise InputError(f"{type(network).__name__} has no module {missing[0]!r}" if missing else "no layer is named")
    found: dict[str, list[Tensor]] = {name: [] for name in layers}

    def noting(name: str) -> Callable[..., None]:
        def note(module: nn.Module, given: Any, out: Tensor) -> None:
            found[name].append(out.flatten(2).mean(2).float() if out.ndim > 2 else out.float())

        return note

    training = network.training
    network.eval()
    hooks = [known[name].register_forward_hook(noting(name)) for name in layers]
    try:
        for images in batches:
            (forward or network)(images)
    finally:
        for hook in hooks:
            hook.remove()
        network.train(training)
    silent = [name for name in layers if not found[name]]
    if silent:
        raise InputError(f"module {silent[0]!r} did not run: there are no images, or the network calls its parts instead")
    return {name: torch.cat(values) for name, values in found.items()}


def feature_divergence(
    network: nn.Module,
    first: Iterable[Tensor],
    second: Iterable[Tensor],
    layers: Sequence[str],
    forward: Callable[[Tensor], Any] | None = None,
) -> dict[str, float]:
    """{layer: D} between the batches of two sets of images, as `network` sees them."""
    a, b = (channel_means(network, batches, layers, forward) for batches in (first, second))
    return {name: gaussian_divergence(a[name], b[name]) for name in layers}
