"""From a cell's table to a module: the operations of NASNet's search space, and the cell that carries out a plan.

Every convolution of the space begins with a ReLU. The ReLU of a state is computed once for all that read it: cells hand on
their output after it, and operations with `activated = True` take their input after it. Module names are timm's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.fused import Plan
from paperworks.backbones.genotype import CellPlan
from paperworks.errors import InputError
from paperworks.layers.convolution import SameConv2d
from paperworks.layers.folding import scale_and_shift
from paperworks.layers.same_padding import SameAvgPool2d, SameMaxPool2d, same_windows, sizes_vary

Norm = Callable[[int], nn.BatchNorm2d]
State = tuple[Tensor, Tensor]
"""(previous map, current map), both after a ReLU"""


class NormedConv(nn.Module):
    """1x1 or larger convolution without bias, batch norm. Takes its input after the ReLU."""

    activated = True
    norm_pairs = (("conv", "bn"),)

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, norm: Norm, dilation: int = 1, padding: int = -1):
        super().__init__()
        self.conv = convolution(inputs, outputs, size, stride, dilation=dilation, padding=padding)
        self.bn = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class SeparableConv2d(nn.Module):
    """Depthwise and pointwise convolution with nothing between them."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int):
        super().__init__()
        self.depthwise_conv2d = convolution(inputs, inputs, size, stride, groups=inputs)
        self.pointwise_conv2d = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_conv2d(self.depthwise_conv2d(x))


class SeparableTwice(nn.Module):
    """A separable convolution is always applied twice (appendix A.4); the first one strides. Takes its input after the ReLU."""

    activated = True
    norm_pairs = (("separable_1.pointwise_conv2d", "bn_sep_1"), ("separable_2.pointwise_conv2d", "bn_sep_2"))

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, norm: Norm):
        super().__init__()
        self.separable_1 = SeparableConv2d(inputs, outputs, size, stride)
        self.bn_sep_1 = norm(outputs)
        self.separable_2 = SeparableConv2d(outputs, outputs, size, 1)
        self.bn_sep_2 = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn_sep_1(self.separable_1(x)), inplace=True)
        return self.bn_sep_2(self.separable_2(x))


class BandPair(nn.Module):
    """1 x size, then size x 1 convolution, each followed by batch norm. Takes its input after the ReLU.

    Padded as every other operation is: on an even map a stride of 2 has one pixel less on the left and above.
    """

    activated = True
    norm_pairs = (("wide", "wide_bn"), ("high", "high_bn"))

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, norm: Norm):
        super().__init__()
        self.margin, self.stride = size // 2, stride
        inside = self.margin if stride == 1 else 0
        self.wide = nn.Conv2d(inputs, outputs, (1, size), (1, stride), (0, inside), bias=False)
        self.wide_bn = norm(outputs)
        self.high = nn.Conv2d(outputs, outputs, (size, 1), (stride, 1), (inside, 0), bias=False)
        self.high_bn = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = F.pad(x, (self.margin, self.margin, 0, 0))[..., 1 - x.shape[3] % 2 :]
        x = F.relu(self.wide_bn(self.wide(x)), inplace=True)
        if self.stride > 1:
            x = F.pad(x, (0, 0, self.margin, self.margin))[:, :, 1 - x.shape[2] % 2 :]
        return self.high_bn(self.high(x))


class PoolThenMatch(nn.Module):
    """A pooling whose result needs another number of channels."""

    activated = False
    norm_pairs = (("conv", "bn"),)

    def __init__(self, pool: nn.Module, inputs: int, outputs: int, norm: Norm):
        super().__init__()
        self.pool = pool
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.pool(x)))


class FactorisedReduction(nn.Module):
    """Half the map's side without losing every other pixel: one half of the outputs sees the pixels at even places, the other
    those one further right and below (beyond an odd map: zeros). Takes its input after the ReLU."""

    def __init__(self, inputs: int, outputs: int, norm: Norm):
        super().__init__()
        if outputs % 2:
            raise InputError(f"{outputs} filters cannot be halved between the two paths of a reduction: take an even number")
        self.path_1 = nn.Sequential(OrderedDict(conv=nn.Conv2d(inputs, outputs // 2, 1, bias=False)))
        self.path_2 = nn.Sequential(OrderedDict(conv=nn.Conv2d(inputs, outputs // 2, 1, bias=False)))
        self.final_path_bn: nn.Module = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if sizes_vary():  # the same, in sizes that exporters can compare with those of strided convolutions
            even = same_windows(x, 1)[:, :, ::2, ::2]
            odd = same_windows(F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:], 1)[:, :, ::2, ::2]
        else:
            even, odd = x[:, :, ::2, ::2], F.pad(x[:, :, 1::2, 1::2], (0, width % 2, 0, height % 2))
        return self.final_path_bn(torch.cat((self.path_1(even), self.path_2(odd)), 1))

    def for_inference(self, plan: Plan) -> nn.Module:
        found = scale_and_shift(self.final_path_bn) if isinstance(self.final_path_bn, nn.BatchNorm2d) else None
        if found is not None:
            halves = zip((self.path_1.conv, self.path_2.conv), found[0].chunk(2), found[1].chunk(2))
            for conv, scale, shift in halves:
                assert isinstance(conv, nn.Conv2d)
                conv.weight.copy_(conv.weight.double() * scale.view(-1, 1, 1, 1))
                conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)
            self.final_path_bn = nn.Identity()
            plan.note("batch norm of a factorised reduction folded into its two convolutions")
        return self


def convolution(
    inputs: int, outputs: int, size: int, stride: int = 1, *, groups: int = 1, dilation: int = 1, padding: int = -1
) -> nn.Conv2d:
    """Without bias; padded so that the map keeps its size, or to ceil(size / stride). padding: another one, 0 for none."""
    given = dilation * (size // 2) if padding < 0 else padding
    kind = SameConv2d if stride > 1 and padding < 0 else nn.Conv2d
    return kind(inputs, outputs, size, stride, 0 if kind is SameConv2d else given, dilation, groups, bias=False)


def make_operation(name: str, inputs: int, outputs: int, stride: int, norm: Norm) -> nn.Module:
    """An operation of the search space, [N, inputs, H, W] -> [N, outputs, ceil(H / stride), ceil(W / stride)]."""
    kind, _, size = name.rpartition("_")
    number = int(size.split("x")[0]) if kind else 0
    if name == "identity":
        if stride == 1 and inputs == outputs:
            return nn.Identity()
        return NormedConv(inputs, outputs, 1, stride, norm)
    if kind in ("avg_pool", "max_pool"):
        pool = (SameAvgPool2d if kind == "avg_pool" else SameMaxPool2d)(number, stride)
        return pool if inputs == outputs else PoolThenMatch(pool, inputs, outputs, norm)
    if kind == "sep_conv":
        return SeparableTwice(inputs, outputs, number, stride, norm)
    if kind == "conv":
        return NormedConv(inputs, outputs, number, stride, norm)
    if kind == "dil_conv":
        return NormedConv(inputs, outputs, number, stride, norm, dilation=2)
    assert kind in ("conv_1x3", "conv_1x7"), name
    return BandPair(inputs, outputs, number, stride, norm)


class Cell(nn.Module):
    """Carries out a plan: (previous, current) -> (current or previous, output).

    current, previous: channels of the two maps; previous None means that there is no other map, and state 1 is the current one
    as it came. halves: the operations that read states 0 and 1 stride by 2. previous_is_larger: the previous map has twice the
    side. keeps_previous: what comes after sees this cell's previous map again, not its current one.
    drop_path: applied to the result of every operation but the identity.
    """

    def __init__(
        self,
        plan: CellPlan,
        filters: int,
        current: int,
        previous: int | None,
        norm: Norm,
        *,
        halves: bool = False,
        previous_is_larger: bool = False,
        keeps_previous: bool = False,
        drop_path: nn.Module | None = None,
    ):
        super().__init__()
        if filters < 1:
            raise InputError(f"a cell of {filters} filters has none: take more")
        self.plan, self.keeps_previous = plan, keeps_previous
        self.conv_1x1 = NormedConv(current, filters, 1, 1, norm)
        self.conv_prev_1x1: nn.Module | None = None
        if previous is not None and previous_is_larger:
            self.conv_prev_1x1 = FactorisedReduction(previous, filters, norm)
        elif previous is not None:
            self.conv_prev_1x1 = NormedConv(previous, filters, 1, 1, norm)
        widths = [filters, current if previous is None else filters]
        self.operations: list[tuple[str, str]] = []
        for number, block in enumerate(plan.blocks):
            names = (f"comb_iter_{number}_left", f"comb_iter_{number}_right")
            for name, (state, operation) in zip(names, block.branches):
                stride = 2 if halves and state < 2 else 1
                self.add_module(name, make_operation(operation, widths[state], filters, stride, norm))
            self.operations.append(names)
            widths.append(filters if block.combine == "add" else 2 * filters)
        # states 0 and 1, where they are returned, must have the size of the others
        self.matched = nn.ModuleDict()
        for state in plan.concat:
            if state < 2 and halves:
                self.matched[str(state)] = FactorisedReduction(widths[state], filters, norm)
            elif state < 2 and widths[state] != filters:
                self.matched[str(state)] = NormedConv(widths[state], filters, 1, 1, norm)
            if str(state) in self.matched:
                widths[state] = filters
        self.channels = sum(widths[state] for state in plan.concat)
        self.drop_path = drop_path or nn.Identity()

    def forward(self, x: Tensor | State) -> State:
        """x: a pair of maps after their ReLU, or the one map that there is, before its ReLU."""
        previous, current = x if isinstance(x, tuple) else (x, F.relu(x))
        return (previous if self.keeps_previous else current), F.relu(self.combined(previous, current), inplace=True)

    def combined(self, previous: Tensor, current: Tensor) -> Tensor:
        """The cell's output before its ReLU. previous: before its ReLU where there is no other map than the current one."""
        states = [self.conv_1x1(current)]
        activated: dict[int, Tensor] = {}
        if self.conv_prev_1x1 is None:
            states.append(previous)
            activated[1] = current
        else:
            states.append(self.conv_prev_1x1(previous))
        for block, names in zip(self.plan.blocks, self.operations):
            results = []
            for name, (state, word) in zip(names, block.branches):
                operation = getattr(self, name)
                x = states[state]
                if getattr(operation, "activated", False):
                    if state not in activated:
                        activated[state] = F.relu(x)
                    x = activated[state]
                result = operation(x)
                # an identity that strides or widens is a convolution here, and still never dropped
                results.append(result if word == "identity" else self.drop_path(result))
            left, right = results
            states.append(left + right if block.combine == "add" else torch.cat((left, right), 1))
        return torch.cat([self._returned(state, states[state]) for state in self.plan.concat], 1)

    def _returned(self, state: int, x: Tensor) -> Tensor:
        return self.matched[str(state)](x) if str(state) in self.matched else x
