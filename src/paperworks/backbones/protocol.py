"""timm's protocol, so that detectors, segmentation heads and explainers made for timm take our networks as they are.

A network derives from `Backbone`, which needs from it only `levels()` (the steps from image to each feature map),
`feature_info`, `forward_head`, `get_classifier` and `reset_classifier`. As in timm, images come normalised (`pretrained_cfg`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paperworks.errors import InputError
from paperworks.layers.pretrained import Pretrained, load_official


class Backbone(nn.Module, Pretrained):
    """An image network [N, in_chans, H, W] -> logits [N, num_classes] with feature maps of falling resolution."""

    num_classes: int
    in_chans: int
    num_features: int
    """channels of the last feature map"""
    head_hidden_size: int
    """width of what `forward_head(x, pre_logits=True)` returns"""
    feature_info: list[dict[str, Any]]
    """per level: num_chs, reduction, module, index"""
    pretrained_cfg: dict[str, Any]
    grad_checkpointing: bool = False
    blocks_pattern: ClassVar[str] = r"^stages\.(\d+)\.blocks\.(\d+)"

    # --- what a network provides ---------------------------------------------------------------------------------------

    def stem_module(self) -> nn.Module:
        raise NotImplementedError

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        """Per feature map the modules applied one after the other, the stem not included."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        raise NotImplementedError

    def get_classifier(self) -> nn.Module:
        raise NotImplementedError

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        raise NotImplementedError

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """The authors' weights in a network built with the given constructor arguments."""
        return load_official(cls(**official), state_dict)

    # --- forward passes ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_chans, H, W] -> logits [N, num_classes]."""
        return self.forward_head(self._features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Image -> last feature map [N, num_features, h, w]."""
        return self._as_given(self._features(x), x)

    def _features(self, x: Tensor) -> Tensor:
        x = self._enter(x)
        for level in self.levels():
            x = self._through(level, x)
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """(last map, chosen maps) or only the chosen maps. indices: last n (int), all (None), or positions, negative from the
        end. `norm` is accepted for the protocol: feature maps here have no norm of their own."""
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt {output_fmt!r}: feature maps are NCHW")
        levels = self.levels()
        taken = take_indices(len(levels), indices)
        maps = []
        given = x
        x = self._enter(x)
        for index, level in enumerate(levels):
            if stop_early and index > max(taken):
                break
            x = self._through(level, x)
            if index in taken:
                maps.append(self._as_given(x, given))
        return maps if intermediates_only else (self._as_given(x, given), maps)

    def _enter(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            self._check_input(x)
            if not self.training and x.device.type == "cpu":
                # convolutions and 1x1 products on a CPU run faster where the channels of a pixel lie together
                x = x.contiguous(memory_format=torch.channels_last)
        return self.stem_module()(x)

    @staticmethod
    def _as_given(features: Tensor, x: Tensor) -> Tensor:
        """Feature maps leave in the memory layout in which the image came, so that `view` works on them as expected."""
        return features.contiguous() if x.is_contiguous() else features

    def _check_input(self, x: Tensor) -> None:
        least = self.feature_info[-1]["reduction"]
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise InputError(f"{type(self).__name__} takes [N, {self.in_chans}, H, W], not {list(x.shape)}")
        if min(x.shape[2:]) < least:
            raise InputError(
                f"an image of {x.shape[2]}x{x.shape[3]} vanishes in {type(self).__name__}: at least {least}x{least}"
            )

    def _through(self, modules: Sequence[nn.Module], x: Tensor) -> Tensor:
        for module in modules:
            # activations and poolings cost nothing to keep, and those that work in place would change what was kept
            worth = self.grad_checkpointing and self.training and next(module.parameters(), None) is not None
            if worth and torch.is_grad_enabled():
                x = checkpoint(module, x, use_reentrant=False)
            else:
                x = module(x)
        return x

    # --- the rest of the protocol -----------------------------------------------------------------------------------------

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the levels after the last chosen one, and the head; returns the positions that were chosen."""
        taken = take_indices(len(self.levels()), indices)
        if max(taken) < len(self.levels()) - 1:
            self.keep_levels(max(taken) + 1)
            self.num_features = self.feature_info[max(taken)]["num_chs"]
            prune_head = True
        if prune_head:
            self.reset_classifier(0, reset_other=True)
        return taken

    def keep_levels(self, count: int) -> None:
        """Drop all levels from `count` on."""
        raise InputError(f"{type(self).__name__} cannot drop feature maps; take them with forward_intermediates")

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that put parameters into depth-ordered groups (layer-wise learning rates)."""
        if coarse:
            return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}
        return {"stem": r"^stem", "blocks": [(r"^stages\.(\d+)\.downsample", (0,)), (self.blocks_pattern, None)]}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay beyond the usual vectors."""
        return set()


def take_indices(levels: int, indices: int | Sequence[int] | None) -> list[int]:
    """Positions of the chosen levels: the last n for an int, all for None, negative ones from the end."""
    if indices is None:
        return list(range(levels))
    if isinstance(indices, int):
        if not 1 <= indices <= levels:
            raise InputError(f"the last {indices} feature maps of {levels}: take 1 to {levels}")
        return list(range(levels - indices, levels))
    taken = [index + levels if index < 0 else index for index in indices]
    for given, index in zip(indices, taken):
        if not 0 <= index < levels:
            raise InputError(f"no feature map {given}: there are {levels}, 0 to {levels - 1}")
    return taken


def initialise(module: nn.Module) -> None:
    """Weights from a normal of deviation 0.02, cut at two units, biases 0 (for `network.apply`)."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def per_stage(name: str, value: Any, count: int) -> list[Any]:
    """A list of `count` values from a list or from one value for all stages."""
    values = list(value) if isinstance(value, list | tuple) else [value] * count
    if len(values) != count:
        raise InputError(f"{name} has {len(values)} entries for {count} stages")
    return values
