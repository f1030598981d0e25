"""training: the one loop, its configuration, and what a method has to bring.

from paperworks.training import Losses, Objective, TrainConfig, fit
"""

from paperworks.training.batches import BatchTransform
from paperworks.training.checkpoint import latest_weights
from paperworks.training.config import OptimizerConfig, ParameterRule, ScheduleConfig, TrainConfig
from paperworks.training.guard import DivergedError
from paperworks.training.loop import Fitted, fit
from paperworks.training.metrics import read_metrics
from paperworks.training.objective import Batch, Context, Losses, Objective, Phase
from paperworks.training.optimizers import describe_groups
from paperworks.training.precision import autocast, bf16_is_fast
from paperworks.training.two_pass import TwoPass

__all__ = [
    "Batch",
    "BatchTransform",
    "Context",
    "DivergedError",
    "Fitted",
    "Losses",
    "Objective",
    "OptimizerConfig",
    "ParameterRule",
    "Phase",
    "ScheduleConfig",
    "TrainConfig",
    "TwoPass",
    "autocast",
    "bf16_is_fast",
    "describe_groups",
    "fit",
    "latest_weights",
    "read_metrics",
]
