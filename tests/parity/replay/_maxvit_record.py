"""What the recorded MaxViT networks looked their relative biases up with.

The recordings drew random numbers for every parameter and buffer of timm's modules, in order, with one seeded generator. That
included the two constant one-hot tables of each relative bias, which are computed and in no file. So the outputs recorded after
an attention are those of a network with random tables. Here the seed is found again from the recorded weights, the tables are
drawn as they were, and the replay looks its biases up with them; a recording with the true tables finds no seed and needs none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from paperworks.layers.multi_axis import RelativeBias

SEEDS = 2000


def drawn_tables(module: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """timm's lookup tables by name as the recording of `module` drew them; none where no seed explains the weights."""
    named = [
        (name, value) for name, value in [*module.named_parameters(), *module.named_buffers()] if value.is_floating_point()
    ]
    for seed in range(SEEDS):
        generator = torch.Generator().manual_seed(seed)
        scale: float | None = None
        found: dict[str, Tensor] = {}
        for name, value in named:
            drawn = (torch.rand if "running_var" in name else torch.randn)(value.shape, generator=generator)
            fan = (value.numel() / value.shape[0]) ** -0.5
            if name in weights and value.ndim > 1:
                ratios = weights[name] / (drawn * fan)
                scale = float(ratios.median()) if scale is None else scale
                if not torch.allclose(ratios, torch.full_like(ratios, scale), rtol=1e-3):
                    break
            elif name.endswith("_lookup"):
                found[name] = drawn * fan
        else:
            return {name: value * (scale or 1.0) for name, value in found.items()}
    return {}


class LookedUp(RelativeBias):
    """A relative bias with tables [h, h, 2 h - 1] and [w, w, 2 w - 1] in place of the one-hot ones."""

    height: Tensor
    width: Tensor

    def forward(self) -> Tensor:
        looked = torch.einsum("nhw,ixh,jyw->nijxy", self.relative_position_bias_table, self.height, self.width)
        length = self.window[0] * self.window[1]
        return looked.reshape(self.heads, length, length)


def look_up(model: nn.Module, tables: Mapping[str, Tensor]) -> nn.Module:
    """The model with the tables that belong to its biases, by their names in timm's module."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, RelativeBias) and f"{prefix}height_lookup" in tables:
            module.__class__ = LookedUp
            module.height, module.width = tables[f"{prefix}height_lookup"], tables[f"{prefix}width_lookup"]
    return model
