"""SimpleNet (1608.06037): a straight chain of convolutions, thirteen layers deep, that ends in a global maximum.

Layers are consecutive entries of one `features` sequence, as in the released files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn

from paperworks.backbones.protocol import Backbone
from paperworks.backbones.registry import Entry
from paperworks.errors import InputError
from paperworks.layers.pretrained import load_official

POOL = "p"
Plan = tuple[int | str, ...]
"""per layer: the channels of a 3x3 convolution, "256k1" for a 1x1 convolution, or "p" for a 2x2 maximum"""

PLANS: dict[str, Plan] = {
    "imagenet": (64, *(128,) * 5, POOL, 256, 256, 256, 512, POOL, "2048k1", "256k1", 256),
    "imagenet_9m": (128, *(192,) * 5, POOL, 320, 320, 320, 640, POOL, "2560k1", "320k1", 320),
    "cifar_5m": (64, 128, 128, 128, POOL, 128, 128, 256, POOL, 256, 256, POOL, 512, "2048k1", "256k1", POOL, 256),
    "cifar_310k": (64, 32, 32, 32, POOL, 32, 32, 64, POOL, 64, 64, POOL, 128, "256k1", "64k1", POOL, 64),
    "cifar_460k": (32, 32, 32, 64, POOL, 64, 64, 64, POOL, 64, 64, POOL, 96, "96k1", "96k1", POOL, 100),
    "cifar_5m_extra_pool": (
        64,
        128,
        128,
        128,
        POOL,
        128,
        128,
        256,
        POOL,
        256,
        256,
        POOL,
        512,
        POOL,
        "2048k1",
        "256k1",
        POOL,
        256,
    ),
}
"""as the paper and the released code print them; the released CIFAR weights need the one with the extra pooling"""

STRIDES: dict[int, dict[int, int]] = {
    0: {},
    1: {0: 2, 1: 2, 2: 2},
    2: {0: 2, 1: 2, 3: 2},
    3: {0: 2, 1: 2, 4: 2},
    4: {0: 2, 2: 2, 4: 2},
}
"""layer -> stride, by mode: where 224-pixel images are made smaller"""


class SimpleNet(Backbone):
    """[N, in_chans, H, W] -> [N, num_classes].

    plan: a name of PLANS or a plan of your own. mode: where convolutions stride (0: nowhere). scale: multiplies every width.
    drop_rates: layer (poolings count) -> rate of Dropout2d after it, "all" rates at once with a number. Layers just before a
    pooling have no dropout of their own in the CIFAR plans. norm_momentum: of running statistics.
    """

    blocks_pattern = r"^features\.(\d+)"

    def __init__(
        self,
        plan: str | Sequence[int | str] = "imagenet",
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        mode: int = 2,
        scale: float = 1.0,
        drop_rates: Mapping[int, float] | float = 0.0,
        head_drop: float = 0.0,
        norm_momentum: float = 0.05,
    ):
        super().__init__()
        if isinstance(plan, str):
            if plan not in PLANS:
                raise InputError(f"no plan {plan!r}: there are {', '.join(PLANS)}")
            bare_before_pool, plan = plan.startswith("cifar"), PLANS[plan]
        else:
            bare_before_pool = False
        if mode not in STRIDES:
            raise InputError(f"mode {mode}: there are {', '.join(map(str, STRIDES))}")
        self.num_classes, self.in_chans = num_classes, in_chans
        each = drop_rates if isinstance(drop_rates, Mapping) else dict.fromkeys(range(len(plan)), drop_rates)
        rates = {int(index): rate for index, rate in each.items()}  # a saved configuration has names for numbers
        beyond = [index for index in rates if not 0 <= index < len(plan)]
        if beyond:
            raise InputError(
                f"drop_rates names layer {beyond[0]}, but there are {len(plan)} layers, counted from 0; what comes before the "
                "classifier is head_drop"
            )
        modules: list[nn.Module] = []
        self.feature_info = []
        self._ends: list[int] = []
        channels, reduction = in_chans, 1
        for index, layer in enumerate(plan):
            if layer == POOL:
                self._end_level(len(modules), channels, reduction)
                modules += [nn.MaxPool2d(2, 2), nn.Dropout2d(rates.get(index, 0.0))]
                reduction *= 2
                continue
            width, size = _width_and_size(layer)
            outputs, stride = round(width * scale), STRIDES[mode].get(index, 1)
            if stride == 2:
                self._end_level(len(modules), channels, reduction)
                reduction *= 2
            modules += [
                nn.Conv2d(channels, outputs, size, stride, size // 2),
                nn.BatchNorm2d(outputs, momentum=norm_momentum),
                nn.ReLU(inplace=True),
            ]
            if not (bare_before_pool and index + 1 < len(plan) and plan[index + 1] == POOL):
                modules.append(nn.Dropout2d(rates.get(index, 0.0)))
            channels = outputs
        self._end_level(len(modules), channels, reduction)
        self.features = nn.Sequential(*modules)
        self.drop = nn.Dropout(head_drop)
        self.num_features = self.head_hidden_size = channels
        self.classifier = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight, gain=math.sqrt(2))

    def _end_level(self, end: int, channels: int, reduction: int) -> None:
        """Everything before module `end` gives one feature map (of full resolution: none)."""
        if reduction > 1 and (not self._ends or end > self._ends[-1]):
            info = {"num_chs": channels, "reduction": reduction, "module": f"features.{end - 1}"}
            self.feature_info.append({**info, "index": len(self._ends)})
            self._ends.append(end)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official: Any) -> Self:
        """Released weights; `network_idx` and `mode` are the released code's arguments."""
        plans = ("imagenet", "imagenet_9m", "cifar_310k", "cifar_460k", "cifar_5m", "cifar_5m_extra_pool")
        number = official.pop("network_idx", None)
        if number is not None:
            if not 0 <= number < len(plans):
                raise InputError(f"network_idx {number}: there are 0 to {len(plans) - 1}")
            official["plan"] = plans[number]
        try:
            return load_official(cls(**official), state_dict)
        except InputError as error:
            if official.get("plan") == "cifar_5m":
                raise InputError(f"{error}; the released CIFAR weights belong to plan='cifar_5m_extra_pool'") from None
            raise

    # --- timm's protocol --------------------------------------------------------------------------------------------------

    def stem_module(self) -> nn.Module:
        return nn.Identity()

    def levels(self) -> Sequence[Sequence[nn.Module]]:
        starts = [0, *self._ends[:-1]]
        return [list(self.features[start:end]) for start, end in zip(starts, self._ends)]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.drop(x.amax((2, 3)))  # the maximum, not the mean
        return pooled if pre_logits else self.classifier(pooled)

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        self.num_classes = num_classes
        self.classifier = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"stem": r"^features\.0\.", "blocks": self.blocks_pattern}


def _width_and_size(layer: int | str) -> tuple[int, int]:
    if isinstance(layer, int):
        return layer, 3
    width, _, size = layer.partition("k")
    if not (width.isdigit() and size.isdigit() and int(size) % 2):
        raise InputError(f"layer {layer!r}: a number of channels, '256k1' for a kernel of 1, or 'p' for a pooling")
    return int(width), int(size)


HEAD = {"first_conv": "features.0", "classifier": "classifier"}
CIFAR = {**HEAD, "input_size": (3, 32, 32), "pool_size": (2, 2), "num_classes": 10}


def _released(file: str) -> dict[str, Any]:
    return {**HEAD, "url": f"https://github.com/Coderx7/SimpleNet_Pytorch/releases/download/v1.0.0/simplenetv1_{file}.pth"}


ENTRIES: dict[str, Entry] = {
    "simplenetv1_small_m1_05": Entry(SimpleNet, {"mode": 1, "scale": 0.5}, _released("small_m1_05-be804903")),
    "simplenetv1_small_m2_05": Entry(SimpleNet, {"mode": 2, "scale": 0.5}, _released("small_m2_05-ca4b3e2b")),
    "simplenetv1_small_m1_075": Entry(SimpleNet, {"mode": 1, "scale": 0.75}, _released("small_m1_075-098acbff")),
    "simplenetv1_small_m2_075": Entry(SimpleNet, {"mode": 2, "scale": 0.75}, _released("small_m2_075-609ff4da")),
    "simplenetv1_5m_m1": Entry(SimpleNet, {"mode": 1}, _released("5m_m1-36c4ca4d")),
    "simplenetv1_5m_m2": Entry(SimpleNet, {"mode": 2}, _released("5m_m2-9bd6bb36")),
    "simplenetv1_9m_m1": Entry(SimpleNet, {"plan": "imagenet_9m", "mode": 1}, _released("9m_m1-524f9972")),
    "simplenetv1_9m_m2": Entry(SimpleNet, {"plan": "imagenet_9m", "mode": 2}, _released("9m_m2-59e8733b")),
    **{
        f"simplenet_{plan}": Entry(SimpleNet, {"plan": plan, "mode": 0, "num_classes": 10}, CIFAR)
        for plan in PLANS
        if plan.startswith("cifar")
    },
}
