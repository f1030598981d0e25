"""IBN (1807.09441): one part of the channels instance-normalised (appearance), the other batch-normalised (content).

The layer, where a network has it (`stage_marks`), and plain networks turned into ones with it: `to_ibn` swaps the norms of a
trunk, `ibn_from_plain` loads a plain network's weights into one that was built with them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.layers.folding import scale_and_shift
from paperworks.layers.pretrained import Pretrained, load_official

IBN = Literal["a", "b"]
"""half instance norm at the start of residual branches, or instance norm after residual sums"""
DENSE_EVERY, DENSE_RATIO = 3, 0.6
"""in DenseNets: every third layer's first norm, 60 % of whose channels stay batch norm"""

M = TypeVar("M", bound=nn.Module)


class InstanceBatchNorm(nn.Module):
    """[N, C, H, W] -> the same. `ratio` of the channels belong to the norm that comes first.

    first "IN": IBN-a of ResNets, int(C ratio) channels instance-normalised, the rest batch-normalised; "BN": the DenseNet form,
    int(C ratio) channels batch-normalised first. Instance statistics are those of the image at hand in evaluation too.
    """

    def __init__(self, channels: int, ratio: float = 0.5, first: Literal["IN", "BN"] = "IN"):
        super().__init__()
        if not 0 < ratio < 1:
            raise InputError(f"ratio={ratio} is the share of one of the two norms: it lies between 0 and 1")
        self.split = int(channels * ratio)
        if not 0 < self.split < channels:
            raise InputError(f"ratio={ratio} of {channels} channels leaves one of the two norms without any")
        self.first = first
        instance, batch = (self.split, channels - self.split) if first == "IN" else (channels - self.split, self.split)
        self.IN = nn.InstanceNorm2d(instance, affine=True)
        self.BN = nn.BatchNorm2d(batch)

    @classmethod
    def from_batch_norm(cls, norm: nn.BatchNorm2d, ratio: float = 0.5, first: Literal["IN", "BN"] = "IN") -> Self:
        """Each half takes its channels' weight and bias, the batch half its statistics too."""
        layer = cls(norm.num_features, ratio, first)
        layer.BN.eps, layer.BN.momentum = norm.eps, norm.momentum
        layer.load_state_dict(layer.halves(norm.state_dict()), strict=False)
        return _like(layer, norm)

    def halves(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This layer's state from that of a batch norm over all channels; instance norm has no use for statistics."""
        names = ("IN", "BN") if self.first == "IN" else ("BN", "IN")
        found = {}
        for key, value in whole.items():
            if value.ndim == 0:  # the number of batches seen
                found[f"BN.{key}"] = value
                continue
            for half, part in zip(names, (value[: self.split], value[self.split :])):
                if half == "BN" or key in ("weight", "bias"):
                    found[f"{half}.{key}"] = part
        return found

    @property
    def instance_channels(self) -> slice:
        return slice(0, self.split) if self.first == "IN" else slice(self.split, None)

    @property
    def batch_channels(self) -> slice:
        return slice(self.split, None) if self.first == "IN" else slice(0, self.split)

    def forward(self, x: Tensor) -> Tensor:
        _check_size(x)
        before, after = x[:, : self.split], x[:, self.split :]
        if self.first == "IN":
            return torch.cat((self.IN(before), self.BN(after)), 1)
        return torch.cat((self.BN(before), self.IN(after)), 1)


class InstanceNorm(nn.InstanceNorm2d):
    """With weights, without running statistics."""

    def __init__(self, channels: int):
        super().__init__(channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        _check_size(x)
        return super().forward(x)


def _check_size(x: Tensor) -> None:
    if not torch.compiler.is_compiling() and not torch.jit.is_tracing() and math.prod(x.shape[2:]) == 1:
        raise InputError("instance norm of a 1 x 1 map has no statistics: use larger images or fewer stages with it")


# --- inference --------------------------------------------------------------------------------------------------------


class InstancePart(nn.Module):
    """What remains of an InstanceBatchNorm whose batch half the convolution before it took over: its own channels are
    normalised in place, the others are not touched. For inference only."""

    def __init__(self, norm: InstanceBatchNorm):
        super().__init__()
        self.channels, self.eps = norm.instance_channels, norm.IN.eps
        self.weight, self.bias = norm.IN.weight, norm.IN.bias

    def forward(self, x: Tensor) -> Tensor:
        _check_size(x)
        values = x[:, self.channels].float()
        centred = values - values.mean((2, 3), keepdim=True)
        variance = centred.square().mean((2, 3), keepdim=True)  # torch.var_mean over two dimensions takes ten times as long
        scale = self.weight.view(-1, 1, 1) * torch.rsqrt(variance + self.eps)
        x[:, self.channels] = centred.mul_(scale).add_(self.bias.view(-1, 1, 1))
        return x


@torch.no_grad()
def fold_batch_half(layer: nn.Conv2d, norm: InstanceBatchNorm) -> InstancePart | None:
    """Change `layer` in place so that the result on layer(x) is what norm(layer(x)) was; None where that is impossible."""
    found = scale_and_shift(norm.BN)
    if found is None:
        return None
    channels = layer.out_channels
    scale, shift = torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    scale, shift = scale.to(layer.weight.device), shift.to(layer.weight.device)
    scale[norm.batch_channels], shift[norm.batch_channels] = found
    layer.weight.copy_(layer.weight.double() * scale.view(-1, 1, 1, 1))
    bias = shift if layer.bias is None else shift + layer.bias.double() * scale
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=layer.weight.requires_grad)
    return InstancePart(norm)


# --- which stages, and from plain networks ----------------------------------------------------------------------------


def stage_marks(ibn: Sequence[IBN | None] | IBN | None, stages: int) -> list[IBN | None]:
    """The form of each stage. A single "a" is for all stages but the last, whose statistics tell contents apart; a single "b"
    for the first half of them."""
    if isinstance(ibn, str):
        _check_form(ibn)
        shallow = max(1, stages - 1 if ibn == "a" else stages // 2)
        return [ibn if index < shallow else None for index in range(stages)]
    marks: list[IBN | None] = [None] * stages if ibn is None else list(ibn)
    if len(marks) != stages:
        raise InputError(f"ibn has {len(marks)} entries for {stages} stages")
    for mark in marks:
        if mark is not None:
            _check_form(mark)
    return marks


def _check_form(ibn: str) -> None:
    if ibn not in ("a", "b"):
        raise InputError(f"ibn={ibn!r}: there are 'a', 'b' and None")


def ibn_from_plain(model: M, state_dict: Mapping[str, Tensor]) -> M:
    """Load a plain network's weights into the same one built with IBN. Instance norms after residual sums have no counterpart
    there and stay as they are."""
    given = dict(state_dict)
    for name, module in model.named_modules():
        if not isinstance(module, InstanceBatchNorm | InstanceNorm):
            continue
        keys = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        whole = {key: given.pop(f"{name}.{key}") for key in keys if f"{name}.{key}" in given}
        if isinstance(module, InstanceBatchNorm):
            own = module.halves(whole)
        else:
            own = {key: value for key, value in (whole or module.state_dict()).items() if key in ("weight", "bias")}
        given |= {f"{name}.{key}": value for key, value in own.items()}
    return load_official(model, given)


def to_ibn(model: M, kind: IBN = "a", *, ratio: float | None = None, stages: Sequence[str] | None = None) -> M:
    """Swap norms of a network in place, its weights kept, and return it. It must be trained on before it is of use.

    "a": of every residual block the first norm, of DenseNets every third layer's, in all stages but the last. "b": instance
    norm after the last residual sum of the stages of the first half, and for the norm of the stem.
    ratio: of the norm that comes first, 0.5 (instance) or in DenseNets 0.6 (batch). stages: names of the stages that change;
    by default they are found where they are called layer1, layer2, ..., denseblock1, ..., or stages.0, ...
    """
    marks = stage_marks(kind, len(_stages(model)) or 1)
    chosen = list(stages) if stages is not None else [name for name, mark in zip(_stages(model), marks) if mark]
    known = dict(model.named_modules())
    missing = [name for name in chosen if name not in known]
    if missing or not chosen:
        found = f"has no module {missing[0]!r}" if missing else "has no stages called layer1, denseblock1 or stages.0"
        raise InputError(f"{type(model).__name__} {found}: name them, stages=(...), out of those that hold its blocks")
    if kind == "b":
        for name in chosen:
            _norm_the_sum(_blocks(known[name])[-1])
        stem = getattr(model, "bn1", None)
        if isinstance(stem, nn.BatchNorm2d):
            model.add_module("bn1", _instance_norm(stem))
    elif not sum(_split_first_norms(known[name], ratio, dense="denseblock" in name) for name in chosen):
        raise InputError(f"{type(model).__name__} has no batch norm in {', '.join(chosen)}: there is nothing to swap")
    if isinstance(model, Pretrained):  # constructor arguments no longer say what the network is
        model._not_storable = (*model._not_storable, "norms of to_ibn")
    return model


def _stages(model: nn.Module) -> list[str]:
    pattern = re.compile(r"(^|\.)(layer|denseblock|stages?\.?)\d+$")
    names = [name for name, _ in model.named_modules() if pattern.search(name)]
    depth = min((name.count(".") for name in names), default=0)
    return [name for name in names if name.count(".") == depth]


def _blocks(stage: nn.Module) -> list[nn.Module]:
    inner = getattr(stage, "blocks", None)
    return list((inner if isinstance(inner, nn.Module) else stage).children())


def _split_first_norms(stage: nn.Module, ratio: float | None, dense: bool) -> int:
    """How many norms were swapped."""
    count = 0
    for number, block in enumerate(_blocks(stage)):
        if dense and number % DENSE_EVERY:
            continue
        norms = [name for name, layer in block.named_modules() if isinstance(layer, nn.BatchNorm2d)]
        norms = [name for name in norms if not name.startswith(("downsample", "shortcut"))]
        if not norms:
            continue
        norm = block.get_submodule(norms[0])
        assert isinstance(norm, nn.BatchNorm2d)
        if dense:
            made = InstanceBatchNorm.from_batch_norm(norm, ratio or DENSE_RATIO, "BN")
        else:
            made = InstanceBatchNorm.from_batch_norm(norm, ratio or 0.5)
        # timm's norms of DenseNets and others apply their activation themselves
        after = [norm.get_submodule(name) for name in ("drop", "act") if isinstance(getattr(norm, name, None), nn.Module)]
        parent, _, last = norms[0].rpartition(".")
        block.get_submodule(parent).add_module(last, nn.Sequential(made, *after) if after else made)
        count += 1
    return count


def _norm_the_sum(block: nn.Module) -> None:
    """Instance norm between a residual block's sum and its last activation."""
    norms = sorted(name for name, layer in block.named_children() if re.fullmatch(r"bn\d", name))
    activations = sorted(name for name, _ in block.named_children() if re.fullmatch(r"act\d", name))
    if norms:
        last = block.get_submodule(norms[-1])
        assert isinstance(last, nn.BatchNorm2d)
        made = _like(InstanceNorm(last.num_features), last)
        if hasattr(block, "IN"):
            block.add_module("IN", made)
            return
        if activations and activations[-1][-1] == norms[-1][-1]:
            block.add_module(activations[-1], nn.Sequential(made, block.get_submodule(activations[-1])))
            return
    raise InputError(
        f"{type(block).__name__} leaves no place between its sum and its last activation: kind 'b' takes our ResNets and timm's"
    )


def _instance_norm(norm: nn.BatchNorm2d) -> InstanceNorm:
    made = InstanceNorm(norm.num_features)
    weights = {key: value for key, value in norm.state_dict().items() if key in ("weight", "bias")}
    made.load_state_dict(weights, strict=False)
    return _like(made, norm)


def _like(made: M, norm: nn.BatchNorm2d) -> M:
    """On the same device, in the same precision and mode."""
    if norm.affine:
        made.to(norm.weight.device, norm.weight.dtype)
    return made.train(norm.training)
