"""What pruning did to each layer: weights and multiply-adds left, as a table and as totals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.compression.distortion import eval_mode
from paperworks.compression.sparsity import PrunableLayer, kept_counts, prunable_layers


@dataclass(frozen=True)
class LayerRow:
    layer: PrunableLayer
    kept: int
    positions: int
    """output positions per image at which every weight is used once (height x width, or tokens)"""
    bias_work: int
    """additions of biases per image; pruning never removes them"""
    distortion: float | None = None
    """squared logit change this layer alone was predicted to cause"""

    @property
    def ratio(self) -> float:
        return 1 - self.kept / self.layer.numel


@dataclass(frozen=True)
class SparsityReport:
    rows: tuple[LayerRow, ...]

    @property
    def sparsity(self) -> float:
        return 1 - sum(row.kept for row in self.rows) / sum(row.layer.numel for row in self.rows)

    @property
    def flops_left(self) -> float:
        """The paper's figure: output positions x surviving weights, biases counted on both sides, over the dense network's."""
        left = sum(row.kept * row.positions + row.bias_work for row in self.rows)
        return left / sum(row.layer.numel * row.positions + row.bias_work for row in self.rows)

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """(columns, rows) for a report or the terminal."""
        columns = ["layer", "shape", "weights", "kept", "removed", "MACs", "MACs left", "distortion alone"]
        rows = [
            [
                row.layer.name,
                " x ".join(map(str, row.layer.shape)),
                f"{row.layer.numel:,}",
                f"{row.kept:,}",
                f"{row.ratio:.1%}",
                f"{row.layer.numel * row.positions:,}",
                f"{row.kept * row.positions:,}",
                "" if row.distortion is None else f"{row.distortion:.3g}",
            ]
            for row in self.rows
        ]
        return columns, rows


def report_layers(
    model: nn.Module,
    example: Tensor,
    layers: Sequence[PrunableLayer] | None = None,
    distortions: Sequence[float] | None = None,
) -> SparsityReport:
    """Counts on one forward pass. example: one image [1, C, H, W]."""
    layers = list(layers or prunable_layers(model))
    positions, biases = _count_work(model, example, layers)
    kept = kept_counts(model, layers)
    known: Sequence[float | None] = distortions or [None] * len(layers)
    rows = (
        LayerRow(layer, k, positions[layer.name], biases[layer.name], d)
        for layer, k, d in zip(layers, kept, known, strict=True)
    )
    return SparsityReport(tuple(rows))


def _count_work(model: nn.Module, example: Tensor, layers: Sequence[PrunableLayer]) -> tuple[dict[str, int], dict[str, int]]:
    positions = {layer.name: 0 for layer in layers}
    biases = {layer.name: 0 for layer in layers}

    def hook_for(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            channels = output.shape[1] if isinstance(module, nn.Conv2d) else output.shape[-1]
            positions[name] += output[0].numel() // channels
            biases[name] += 0 if module.bias is None else output[0].numel()

        return hook

    hooks = [
        model.get_submodule(owner).register_forward_hook(hook_for(layer.name)) for layer in layers for owner in layer.owners
    ]
    try:
        with torch.no_grad(), eval_mode(model):
            model(example[:1].to(next(model.parameters()).device))
    finally:
        for handle in hooks:
            handle.remove()
    return positions, biases
