"""NASNet (1707.07012): a network drawn by hand around two searched cells, one that keeps the map's size and one that halves it.

Stacks of normal cells are separated by reduction cells, and each reduction doubles the filters (figure 2). N@P in the paper's
names is N normal cells per stack and P channels at the end. Module names are timm's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self

from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.cells import Cell, Norm, NormedConv, State
from paperworks.backbones.genotype import genotype_of
from paperworks.backbones.protocol import Backbone
from paperworks.backbones.registry import Entry
from paperworks.errors import InputError
from paperworks.layers.drop_path import DropPath, ScheduledDropPath, kept_share
from paperworks.layers.pretrained import load_official
from paperworks.layers.same_padding import SameAvgPool2d

Stem = Literal["imagenet", "cifar"]
Schedule = Literal["linear", "constant"]


class NASNet(Backbone):
    """[N, in_chans, H, W] -> [N, num_classes]; with the ImageNet stem five maps (1/2 to 1/32), with CIFAR's three (1 to 1/4).

    genotype: "A", or a table of your own (`Genotype.to_plain()`). num_cells: normal cells in all; reductions cut them into
    equal stacks. filters: of the first stack; a normal cell of NASNet-A returns 6 times as many channels.
    stem: "imagenet" shrinks by 8 (a convolution and two reduction cells), "cifar" by stem_stride, of the paper's 1. stem_size:
    channels of the first convolution, 3 * filters by default. channel_multiplier: of the filters at every reduction.
    skip_reduction_input: the cell after a reduction takes the same previous map as the reduction, not the reduction's input.
    drop_path_rate: 1 - the keep probability, reached in the last cell; with "linear" at the end of training only.
    auxiliary_map: side of the map that the auxiliary head reads, for one training size; None for no such head.
    count_padding: poolings that shrink the map average over the zeros beyond its edge too, as timm's network does; the authors'
    does not.
    """

    blocks_pattern = r"^cell_(\d+)"

    def __init__(
        self,
        genotype: str | Mapping[str, Any] = "A",
        *,
        num_cells: int = 18,
        filters: int = 168,
        stem: Stem = "imagenet",
        stem_size: int | None = None,
        stem_stride: int = 1,
        channel_multiplier: int = 2,
        reductions: int = 2,
        skip_reduction_input: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        drop_path_schedule: Schedule = "linear",
        auxiliary_map: int | None = None,
        norm_eps: float = 1e-3,
        norm_momentum: float = 0.1,
        count_padding: bool = False,
    ):
        super().__init__()
        cells = genotype_of(genotype)
        if stem not in ("imagenet", "cifar"):
            raise InputError(f"stem={stem!r}: there are 'imagenet' and 'cifar'")
        if drop_path_schedule not in ("linear", "constant"):
            raise InputError(f"drop_path_schedule={drop_path_schedule!r}: there are 'linear' and 'constant'")
        if reductions < 0 or num_cells < reductions + 1:
            raise InputError(f"num_cells={num_cells} with {reductions} reductions: at least one cell in each stack")
        if stem == "imagenet" and filters % channel_multiplier**2:
            least = channel_multiplier**2
            raise InputError(f"filters={filters}: the stem's first cell has a {least}th of them; take a multiple of {least}")
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        norm: Norm = partial(nn.BatchNorm2d, eps=norm_eps, momentum=norm_momentum)
        drop = ScheduledDropPath if drop_path_schedule == "linear" else DropPath

        stem_stride = 2 if stem == "imagenet" else stem_stride
        current = stem_size or 3 * filters
        self.conv0 = NormedConv(in_chans, current, 3, stem_stride, norm, padding=0 if stem == "imagenet" else -1)
        plan = list(skeleton(num_cells, filters, channel_multiplier, reductions, stem))
        previous: int | None = None
        scale = previous_scale = stem_stride  # image pixels per pixel of the current and of the previous map
        self._levels = [["conv0"]]
        self.feature_info = [{"num_chs": current, "reduction": scale, "module": "conv0", "index": 0}]
        before_last_reduction = current
        for number, (name, width, halves) in enumerate(plan):
            keeps = skip_reduction_input and name.startswith("reduction")
            rate = 1 - kept_share(1 - drop_path_rate, depth=(number + 1) / len(plan))
            cell = Cell(
                cells.reduction if halves else cells.normal,
                width,
                current,
                previous,
                norm,
                halves=halves,
                previous_is_larger=previous_scale < scale,
                keeps_previous=keeps,
                drop_path=drop(rate) if rate else None,
            )
            self.add_module(name, cell)
            if not keeps:
                previous, previous_scale = current, scale
            if halves:
                before_last_reduction = current
                scale *= 2
                self._levels.append([])
                self.feature_info.append({"index": len(self.feature_info)})
            current = cell.channels
            self._levels[-1].append(name)
            self.feature_info[-1] |= {"num_chs": current, "reduction": scale, "module": name}
        self.num_features = self.head_hidden_size = current
        self.auxiliary: AuxiliaryHead | None = None
        if auxiliary_map is not None:
            self.auxiliary = AuxiliaryHead(before_last_reduction, num_classes, auxiliary_map, norm)
        self.last_linear = nn.Linear(current, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, SameAvgPool2d) and module.stride > 1:
                module.count_padding = count_padding
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """timm's nasnetalarge, and the files of pretrained-models.pytorch (nasnetalarge, nasnetamobile); argument names of
        theirs: num_features or penultimate_filters, stem_filters, filters_multiplier."""
        given = {OFFICIAL_NAMES.get(name, name): value for name, value in official.items()}
        features = given.pop("num_features", None)
        if features is not None:
            given["filters"] = features // 24
        count = given.get("num_cells", 18)
        numbers = {int(found[1]) for key in state_dict if (found := re.match(r"cell_(\d+)\.", key))}
        stack = count // (given.get("reductions", 2) + 1) if max(numbers, default=0) >= count else None
        return load_official(cls(**given), state_dict, rename=partial(official_name, stack=stack))

    # --- timm's protocol --------------------------------------------------------------------------------------------------

    def stem_module(self) -> nn.Module:
        return nn.Identity()

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        return [[self.get_submodule(name) for name in level] for level in self._levels]

    def keep_levels(self, count: int) -> None:
        for level in self._levels[count:]:
            for name in level:
                delattr(self, name)
        self._levels = self._levels[:count]
        self.feature_info = self.feature_info[:count]
        self.auxiliary = None

    def _features(self, x: Tensor) -> Tensor:
        return current_map(super()._features(x))

    @staticmethod
    def _as_given(features: Tensor | State, x: Tensor) -> Tensor:
        return Backbone._as_given(current_map(features), x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = F.dropout(x.mean((2, 3)), self.drop_rate, self.training)
        return pooled if pre_logits else self.last_linear(pooled)

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and those of the auxiliary head, which reads the map before the last reduction."""
        if self.auxiliary is None:
            raise InputError("this NASNet has no auxiliary head: build it with auxiliary_map, the side of the map it reads")
        state: Any = self._enter(x)
        *body, last = self.levels()
        for level in body:
            state = self._through(level, state)
        side = self.auxiliary(current_map(state))
        return self.forward_head(current_map(self._through(last, state))), side

    def get_classifier(self) -> nn.Module:
        return self.last_linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        self.num_classes = num_classes
        self.last_linear = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        if self.auxiliary is not None:
            self.auxiliary.reset_classifier(num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^conv0|^cell_stem_", "blocks": [(self.blocks_pattern, None), (r"^reduction_cell_(\d+)", None)]}


class AuxiliaryHead(nn.Module):
    """A second classifier for training: mean of 5x5 pixels at every third, 1x1 to 128, a convolution over the whole map to 768.

    Its input comes after the ReLU. `side` is that of the map: 16 where CIFAR images of 32 pixels are trained on.
    """

    def __init__(self, inputs: int, num_classes: int, side: int, norm: Norm):
        super().__init__()
        if side < 5:
            raise InputError(f"the auxiliary head pools 5x5 pixels: a map of {side} is too small for it, train without")
        self.pooled = (side - 5) // 3 + 1
        self.side = side
        self.project = NormedConv(inputs, 128, 1, 1, norm)
        self.conv = NormedConv(128, 768, self.pooled, 1, norm, padding=0)
        self.linear = nn.Linear(768, num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        self.linear = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, 5, 3)
        if x.shape[2:] != (self.pooled, self.pooled):
            raise InputError(f"the auxiliary head was built for maps of {self.side} pixels: train on images of that size only")
        x = F.relu(self.project(x), inplace=True)
        return self.linear(F.relu(self.conv(x), inplace=True).flatten(1))


def current_map(state: Tensor | State) -> Tensor:
    return state[1] if isinstance(state, tuple) else state


def reduction_positions(num_cells: int, reductions: int) -> list[int]:
    """Numbers of the normal cells that a reduction cell precedes."""
    return [int(number / (reductions + 1) * num_cells) for number in range(1, reductions + 1)]


def skeleton(num_cells: int, filters: int, multiplier: int, reductions: int, stem: Stem) -> Iterator[tuple[str, int, bool]]:
    """(name, filters, whether it halves the map) of every cell in order."""
    if stem == "imagenet":
        yield "cell_stem_0", filters // multiplier**2, True
        yield "cell_stem_1", filters // multiplier, True
    positions = reduction_positions(num_cells, reductions)
    for number in range(num_cells):
        if number in positions:
            filters *= multiplier
            yield f"reduction_cell_{positions.index(number)}", filters, True
        yield f"cell_{number}", filters, False


OFFICIAL_NAMES = {
    "stem_filters": "stem_size",
    "penultimate_filters": "num_features",
    "filters_multiplier": "channel_multiplier",
}


def official_name(key: str, stack: int | None = None) -> str:
    """Theirs -> ours: the reduction of the previous map is one module here.

    stack: cells of each stack in files whose numbers have gaps: the released mobile network's first cells are 0, 6 and 12.
    """
    key = re.sub(r"(?<!conv_prev_1x1)\.(path_[12]\.conv|final_path_bn)\.", r".conv_prev_1x1.\1.", key)
    if stack is not None:
        key = re.sub(r"^cell_(\d+)\.", lambda found: f"cell_{int(found[1]) // 6 * stack + int(found[1]) % 6}.", key)
    return key


HEAD = {"first_conv": "conv0.conv", "classifier": "last_linear"}
TF = {**HEAD, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
LARGE_CFG = {
    **TF,
    "input_size": (3, 331, 331),
    "pool_size": (11, 11),
    "crop_pct": 0.911,
    "hf_hub_id": "timm/nasnetalarge.tf_in1k",
}
MOBILE_CFG = {**TF, "url": "http://data.lip6.fr/cadene/pretrainedmodels/nasnetamobile-7e03cead.pth"}
CIFAR_CFG = {**HEAD, "input_size": (3, 32, 32), "pool_size": (8, 8), "num_classes": 10}
CIFAR: dict[str, Any] = {"stem": "cifar", "num_classes": 10}

ENTRIES: dict[str, Entry] = {
    "nasnetalarge": Entry(NASNet, {"stem_size": 96, "skip_reduction_input": True}, LARGE_CFG, 82.7),
    "nasnetamobile": Entry(NASNet, {"num_cells": 12, "filters": 44, "stem_size": 32}, MOBILE_CFG, 74.0),
    "nasnet_a_cifar_6_768": Entry(NASNet, {**CIFAR, "filters": 32}, CIFAR_CFG),
    "nasnet_a_cifar_7_2304": Entry(NASNet, {**CIFAR, "num_cells": 21, "filters": 96}, CIFAR_CFG),
}
"""figures of the paper's tables 1 and 2; the large and the mobile network under their usual names"""
