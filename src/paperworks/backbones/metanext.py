"""MetaNeXt (2303.16900, section 3.1): the ConvNeXt skeleton with any token mixer, x + gamma * MLP(norm(mixer(x))).

InceptionNeXt is MetaNeXt with the Inception depthwise convolution and batch norm. Module names are those of the released files,
which are also timm's: `MetaNeXt.from_official` takes both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.backbones.fused import Plan, fuse_mlp_block
from paperworks.backbones.protocol import initialise, per_stage
from paperworks.backbones.staged import Stage, StagedBackbone
from paperworks.errors import InputError
from paperworks.layers.convolution import DepthwiseConv2d, InceptionDWConv2d, PartialConv2d, SameConv2d
from paperworks.layers.drop_path import DropPath, linear_rates
from paperworks.layers.mlp import Activation, ConvMlp, MlpHead, NormHead, PoolHead
from paperworks.layers.norms import Norm, make_norm

MIXERS: dict[str, Callable[..., nn.Module]] = {
    "inception": InceptionDWConv2d,
    "depthwise": DepthwiseConv2d,
    "partial": PartialConv2d,
    "identity": lambda channels, dilation=1: nn.Identity(),
}

Mixer = str | Callable[[int], nn.Module]
"""a name in MIXERS, or a class or function: channels -> module on [N, C, H, W]"""


class MetaNeXtBlock(nn.Module):
    """x + drop_path(gamma * MLP(norm(mixer(x)))): one residual around both halves."""

    def __init__(
        self,
        channels: int,
        token_mixer: nn.Module,
        norm_layer: Norm = "batch",
        mlp_ratio: float = 4,
        act_layer: Activation = "gelu",
        ls_init_value: float | None = 1e-6,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.token_mixer = token_mixer
        self.norm = make_norm(norm_layer, channels)
        self.mlp = ConvMlp(channels, int(mlp_ratio * channels), act_layer)
        self.gamma = nn.Parameter(torch.full((channels,), float(ls_init_value))) if ls_init_value else None
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.token_mixer(x)))
        if self.gamma is None:
            return x + self.drop_path(y)
        gamma = self.gamma.view(1, -1, 1, 1)
        if self.training and isinstance(self.drop_path, DropPath):
            return x + self.drop_path(y * gamma)
        return torch.addcmul(x, y, gamma)  # scale and residual in one pass over the map

    def for_inference(self, plan: Plan) -> nn.Module:
        return fuse_mlp_block(self.token_mixer, self.norm, self.mlp.fc1, self.mlp.act, self.mlp.fc2, self.gamma, plan) or self


class MetaNeXt(StagedBackbone):
    """[N, in_chans, H, W], H and W at least the last reduction (32 by default) and otherwise free, -> [N, num_classes].

    token_mixers: one for all stages or one per stage; `mixer` are further arguments for mixers given by name.
    mlp_ratios: width of the hidden layers as a multiple; 4 and in the last stage 3 by default.
    patch_size: stride and kernel of the stem; 4 in the paper, smaller for small images.
    output_stride: the largest reduction; later stages keep the resolution and dilate their kernels instead.
    head: "mlp" (the paper's), "norm" (LayerNorm and Linear), "linear".
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 3, 9, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        token_mixers: Mixer | Sequence[Mixer] = "inception",
        mixer: Mapping[str, Any] | None = None,
        norm_layer: Norm = "batch",
        act_layer: Activation = "gelu",
        mlp_ratios: float | Sequence[float] | None = None,
        ls_init_value: float | None = 1e-6,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
        head: str = "mlp",
        patch_size: int = 4,
        output_stride: int | None = None,
    ):
        super().__init__()
        count = len(depths)
        if len(dims) != count:
            raise InputError(f"dims {tuple(dims)} for depths {tuple(depths)}: one width per stage")
        mixers = per_stage("token_mixers", token_mixers, count)
        ratios = per_stage("mlp_ratios", [4] * (count - 1) + [3] if mlp_ratios is None else mlp_ratios, count)
        strides = [1] + [2] * (count - 1)
        dilations = [1] * count
        reduction, dilation = patch_size, 1
        for stage in range(1, count):
            if output_stride is not None and reduction * 2 > output_stride:
                strides[stage], dilation = 1, dilation * 2
            reduction *= strides[stage]
            dilations[stage] = dilation
        if output_stride is not None and reduction != output_stride:
            raise InputError(f"output_stride {output_stride}: with {count} stages it is {patch_size} times 1, 2, 4 ...")

        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, dims[-1]
        self.global_pool, self.drop_rate = global_pool, drop_rate
        self.stem = nn.Sequential(nn.Conv2d(in_chans, dims[0], patch_size, patch_size), make_norm(norm_layer, dims[0]))
        stages: list[nn.Module] = []
        self.feature_info = []
        reduction = patch_size
        for stage, rates in enumerate(linear_rates(drop_path_rate, depths)):
            width = dims[stage]
            downsample: nn.Module = nn.Identity()
            if stage:
                # where a dilated stage replaces a strided one, the 2x2 kernel takes the dilation the map had before
                stride, before = strides[stage], dilations[stage - 1]
                kind = nn.Conv2d if stride == 2 else SameConv2d
                conv = kind(dims[stage - 1], width, 2, stride, dilation=1 if stride == 2 else before)
                downsample = nn.Sequential(make_norm(norm_layer, dims[stage - 1]), conv)
                reduction *= stride
            blocks = [
                MetaNeXtBlock(
                    width,
                    _make_mixer(mixers[stage], width, dilations[stage], mixer or {}),
                    norm_layer,
                    ratios[stage],
                    act_layer,
                    ls_init_value,
                    rate,
                )
                for rate in rates
            ]
            stages.append(Stage(downsample, blocks))
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"stages.{stage}", "index": stage})
        self.stages = nn.Sequential(*stages)
        self.head = _make_head(head, dims[-1], num_classes, global_pool, drop_rate)
        self.head_hidden_size = self.head.num_features
        self.apply(initialise)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def get_classifier(self) -> nn.Module:
        return self.head.fc2

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """A new last layer for `num_classes` (0: none); `reset_other` also takes off what stands between pooling and it."""
        weight = next(self.stem.parameters())
        pool = global_pool or self.global_pool
        if reset_other:
            head = PoolHead(self.num_features, num_classes, pool, self.drop_rate)
        else:
            fresh = type(self.head)(self.num_features, num_classes, pool, drop=self.drop_rate)
            kept = {name: value for name, value in self.head.state_dict().items() if not name.startswith("fc2.")}
            if any(value.shape != fresh.state_dict()[name].shape for name, value in kept.items()):
                raise InputError(f"global_pool {pool!r} changes the width of the head's hidden layer; add reset_other=True")
            fresh.load_state_dict(kept, strict=False)
            head = fresh
        if isinstance(head.fc2, nn.Linear):
            initialise(head.fc2)
        self.head = head.to(weight.device, weight.dtype).train(self.training)
        self.num_classes, self.global_pool = num_classes, pool
        self.head_hidden_size = head.num_features


def _make_mixer(kind: Mixer, channels: int, dilation: int, arguments: Mapping[str, Any]) -> nn.Module:
    if callable(kind):
        if dilation > 1:
            raise InputError("output_stride dilates kernels, which only mixers given by name can do")
        return kind(channels)
    if kind not in MIXERS:
        raise InputError(f"no token mixer {kind!r}; there are {', '.join(MIXERS)}, or give a function of the channels")
    return MIXERS[kind](channels, dilation=dilation, **arguments)


def _make_head(kind: str, channels: int, num_classes: int, pool: str, drop: float) -> PoolHead:
    heads = {"mlp": MlpHead, "norm": NormHead, "linear": PoolHead}
    if kind not in heads:
        raise InputError(f"no head {kind!r}; there are {', '.join(heads)}")
    return heads[kind](channels, num_classes, pool, drop=drop)
