"""Networks of equal blocks on tokens that classify by one more token: what they share in timm's protocol."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paperworks.backbones.protocol import Backbone, take_indices
from paperworks.errors import InputError
from paperworks.layers.mlp import make_classifier

Grid = tuple[int, int]
"""rows and columns of patches"""


class ClassTokenBackbone(Backbone):
    """A network says how an image becomes tokens, which blocks follow with what beside the tokens, and its last norm.

    `forward_features` gives the normed tokens, as timm's vision transformers do; maps are the patches of every block.
    """

    embed_dim: int
    cls_token: nn.Parameter
    patch_embed: Any
    """a module, whose parts each network knows by name"""
    head: nn.Module
    class_token_last = False
    """the class token stands before the patches, or after them"""

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Image -> tokens [N, 1 + h * w, embed_dim] with positions, and the grid of patches."""
        raise NotImplementedError

    def steps(self, grid: Grid) -> Sequence[tuple[nn.Module, Any]]:
        """Blocks in order, each with what it takes beside the tokens."""
        raise NotImplementedError

    def last_norm(self) -> nn.Module:
        raise NotImplementedError

    def init_head(self, head: nn.Module) -> None:
        """Initial weights of a new classifier."""

    # --- forward passes ---------------------------------------------------------------------------------------------------

    def forward_features(self, x: Tensor) -> Tensor:
        return self._features(x)

    def _features(self, x: Tensor) -> Tensor:
        x, grid = self.embed(x)
        for block, beside in self.steps(grid):
            x = self._step(block, x, beside)
        return self.last_norm()(x)

    def _step(self, block: nn.Module, x: Tensor, beside: Any) -> Tensor:
        if self.grad_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, beside, use_reentrant=False)
        return block(x, beside)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """(normed tokens, chosen maps) or only the chosen maps; with `norm` the last norm is applied to each map too."""
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt {output_fmt!r}: feature maps are NCHW")
        taken = take_indices(len(self.feature_info), indices)
        x, grid = self.embed(x)
        maps = []
        for index, (block, beside) in enumerate(self.steps(grid)):
            if stop_early and index > max(taken):
                break
            x = self._step(block, x, beside)
            if index in taken:
                tokens = self.last_norm()(x) if norm else x
                patches = tokens[:, :-1] if self.class_token_last else tokens[:, 1:]
                maps.append(patches.transpose(1, 2).unflatten(2, grid).contiguous())
        return maps if intermediates_only else (self.last_norm()(x), maps)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Normed tokens -> logits of the class token, or the token itself."""
        token = x[:, -1] if self.class_token_last else x[:, 0]
        return token if pre_logits else self.head(token)

    # --- the rest of timm's protocol --------------------------------------------------------------------------------------

    def stem_module(self) -> nn.Module:
        return self.patch_embed

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        return [[block] for block, _ in self.steps((1, 1))]

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        if global_pool not in (None, "", "token"):
            raise InputError(f"global_pool {global_pool!r}: {type(self).__name__} classifies by its class token, 'token'")
        self.num_classes = num_classes
        self.head = make_classifier(self.embed_dim, num_classes).to(self.cls_token.device, self.cls_token.dtype)
        self.init_head(self.head)
