"""Networks of a stem and stages: what convolutional and windowed ones share in timm's protocol."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from paperworks.backbones.protocol import Backbone, initialise
from paperworks.layers.mlp import PoolHead


class Stage(nn.Module):
    """What changes the resolution (nothing before the first stage), then blocks at that resolution."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class StagedBackbone(Backbone):
    """A network with `stem` and `stages`, an nn.Sequential of `Stage`."""

    stem: nn.Module
    stages: nn.Sequential

    def stem_module(self) -> nn.Module:
        return self.stem

    def levels(self) -> list[list[nn.Module]]:
        return [[stage.downsample, *stage.blocks] for stage in self.stages if isinstance(stage, Stage)]

    def keep_levels(self, count: int) -> None:
        self.stages = self.stages[:count]
        self.feature_info = self.feature_info[:count]


class PooledBackbone(StagedBackbone):
    """A staged network whose `head` is one of `layers.mlp`'s: pooling, perhaps a norm, a linear layer."""

    head: PoolHead
    drop_rate: float

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def get_classifier(self) -> nn.Module:
        return self.head.fc2

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """A new last layer; what stands before it stays where its width does."""
        kept = {name: value for name, value in self.head.state_dict().items() if not name.startswith("fc2.")}
        fresh = type(self.head)(self.num_features, num_classes, global_pool or self.head.pool.kind, drop=self.drop_rate)
        fresh.apply(initialise)
        if all(value.shape == fresh.state_dict()[name].shape for name, value in kept.items()):
            fresh.load_state_dict(kept, strict=False)
        weight = next(self.stem.parameters())
        self.head = fresh.to(weight.device, weight.dtype).train(self.training)
        self.num_classes, self.head_hidden_size = num_classes, fresh.num_features
