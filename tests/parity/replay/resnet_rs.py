"""ResNet-RS: the network level by level in both modes, and the training algorithms."""

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.backbones.resnet import ResNet, stage_drop_path_rates
from paperworks.layers.drop_path import drop_samples
from paperworks.training.config import ScheduleConfig
from paperworks.training.ema import warmed_up_decay
from paperworks.training.schedules import rate
from tests.parity.case import Case

TOLERANCE = (1e-4, 1e-4)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    return _network(case) if "layers" in case.kwargs else _algorithms(case)


def _network(case: Case) -> dict[str, Tensor]:
    kwargs = case.kwargs
    model = ResNet.from_official(
        case.weights,
        block="basic" if kwargs.get("block") == "BasicBlock" else "bottleneck",
        layers=kwargs["layers"],
        channels=kwargs["channels"],
        stem="deep" if "deep" in kwargs.get("stem_type", "") else "plain",
        stem_width=kwargs.get("stem_width", 64),
        stem_pool="conv" if kwargs.get("replace_stem_pool") else "max",
        avg_down=kwargs.get("avg_down", False),
        attention=kwargs.get("attn", ""),
        se_ratio=kwargs.get("se_rd_ratio", 0.25),
        num_classes=kwargs["num_classes"],
    ).eval()
    x = case.inputs["x"]
    maps = model.forward_intermediates(x, intermediates_only=True)
    result = {"logits": model(x)} | {f"feat{index}": value for index, value in enumerate(maps)}
    result["train_logits"] = model.train()(x)
    for name, value in model.state_dict().items():
        for statistic in ("running_mean", "running_var"):
            if name.endswith(f".{statistic}"):
                result[f"train_{statistic}/{name.removesuffix(f'.{statistic}')}"] = value
    return {name: value for name, value in result.items() if name in case.outputs}


def _algorithms(case: Case) -> dict[str, Tensor]:
    kwargs, inputs = case.kwargs, case.inputs
    steps = kwargs["epochs"] * kwargs["steps_per_epoch"]
    warmup = kwargs["warmup_epochs"] * kwargs["steps_per_epoch"]
    schedule = ScheduleConfig("cosine", warmup=warmup, end=0.0)
    peak = kwargs["base_lr"] * kwargs["batch"] / 256
    rates = stage_drop_path_rates(kwargs["drop_connect_rate"], 4)
    shadow = inputs["ema_seq"][0].clone()
    for number, value in enumerate(inputs["ema_seq"][1:], 1):
        decay = warmed_up_decay(kwargs["ema_decay"], number)
        shadow = decay * shadow + (1 - decay) * value
    return {
        # the reference would reach 0 one step after the last
        "lr_schedule": torch.tensor([peak * rate(step, steps + 1, schedule) for step in range(steps)], dtype=torch.float64),
        "drop_connect_per_stage": torch.tensor(rates, dtype=torch.float64),
        "drop_connect_out": drop_samples(inputs["x"], rates[1], inputs["u"]),
        "label_smoothing_loss": F.cross_entropy(inputs["logits"], inputs["target"], label_smoothing=kwargs["label_smoothing"]),
        "ema_final": shadow,
    }
