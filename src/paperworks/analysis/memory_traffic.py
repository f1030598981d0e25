"""Memory access cost of convolutions, counted exactly while a network runs (VoVNet 1904.09730, section 2.2).

A layer reads its input and its weights and writes its output: h w (c_in + c_out) + k^2 c_in c_out elements for a 1x1-stride
layer on an h x w map. For a given number of multiply-adds it is least where c_in = c_out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ConvolutionTraffic:
    """Elements, not bytes; one image or a whole batch, as it ran."""

    c_in: int
    h_in: int
    w_in: int
    c_out: int
    h_out: int
    w_out: int
    kernel: int
    inputs: int
    outputs: int
    weights: int
    macs: int

    @property
    def activations(self) -> int:
        """What depends on the image: inputs and outputs."""
        return self.inputs + self.outputs

    @property
    def total(self) -> int:
        return self.activations + self.weights

    def as_numbers(self) -> tuple[int, ...]:
        return astuple(self)


@torch.inference_mode()
def convolution_traffic(model: nn.Module, images: Tensor) -> list[ConvolutionTraffic]:
    """A row per 2-D convolution in the order in which they run on `images` [N, C, H, W]; the model is left in its mode."""
    rows: list[ConvolutionTraffic] = []

    def note(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        (x,) = given
        size = layer.weight.shape[2] * layer.weight.shape[3]
        macs = out.numel() * size * layer.in_channels // layer.groups
        sizes = (x.numel(), out.numel(), layer.weight.numel(), macs)
        (_, c_in, h_in, w_in), (_, c_out, h_out, w_out) = x.shape, out.shape
        rows.append(ConvolutionTraffic(c_in, h_in, w_in, c_out, h_out, w_out, layer.kernel_size[0], *sizes))

    training = model.training
    model.eval()
    hooks = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return rows


def activation_traffic(rows: Sequence[ConvolutionTraffic]) -> int:
    return sum(row.activations for row in rows)
