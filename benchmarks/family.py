"""Every recognition network that timm has too, with timm's weights: ours as built, and prepared for inference, one image.

Targets: as built in float32, each side in its better layout, not slower than timm; prepared, a geometric mean over the family
of 2.5 times timm's float32 default and 1.15 times timm under bfloat16 autocast with channels-last.

Papers: resnet-rs, vovnet, inceptionnext, maxvit, nasnet.
"""

from __future__ import annotations

import copy
from math import exp, log
from statistics import median

import timm
import torch
from torch import Tensor, nn

from benchmarks.harness import Ratio, Row, compare, quietly
from paperworks.analysis.timing import Work, alternate
from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.registry import entries

PAIRS = {
    "resnetrs50": "resnetrs50",
    "ese_vovnet19b_dw": "ese_vovnet19b_dw",
    "ese_vovnet39b": "ese_vovnet39b",
    "inceptionnext_tiny": "inception_next_tiny",
    "maxvit_tiny_tf_224": "maxvit_tiny_tf_224",
    "nasnetalarge": "nasnetalarge",
}
"""names here and in timm"""

AS_TIMM = {"nasnetalarge": {"count_padding": True}}
"""arguments that make ours timm's network where timm differs from the authors"""

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def run() -> list[Row]:
    rows: list[Row] = []
    prepared: dict[str, list[Ratio]] = {"timm float32": [], "timm autocast, channels-last": []}
    for name, theirs in PAIRS.items():
        if name not in entries():
            continue
        entry = entries()[name]
        size = int(entry.pretrained_cfg["input_size"][-1])
        torch.manual_seed(0)
        peer = _lively(_timms(theirs)).eval()
        ours = entry.network.from_official(peer.state_dict(), **(entry.arguments | AS_TIMM.get(name, {}))).eval()
        image = torch.rand(1, 3, size, size)
        _agree(ours, peer, image)
        fast = prepare_for_inference(ours, example=image)
        best_ours, best_peer = best_layout(ours, image), best_layout(peer, image)
        what = f"{name}, {size} pixels"
        rows.append(Row(what, "float32, better layout", "timm the same", compare(best_ours, best_peer, 9), target=1.0))
        plain, careful = quietly(peer, image), autocast(peer, image)
        for label, work in zip(prepared, (plain, careful)):
            ratio = compare(quietly(fast, image), work, 9)
            prepared[label].append(ratio)
            rows.append(Row(what, f"prepared {fast.report.precision}" if fast.report else "prepared", label, ratio))
    for (label, ratios), target in zip(prepared.items(), (2.5, 1.15)):
        rows.append(Row(f"geometric mean of {len(ratios)}", "prepared", label, _mean(ratios), target=target))
    return rows


def _timms(name: str) -> nn.Module:
    """timm's own network, also where ours has the same name."""
    return timm.create_model(name)


def _lively(model: nn.Module) -> nn.Module:
    """Statistics that are not the initial ones, so that a mistake in folding would show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(std=0.05)
            module.running_var.uniform_(0.8, 1.2)
    return model


def autocast(model: nn.Module, image: Tensor) -> Work:
    """As careful users run it: a channels-last copy under bfloat16 autocast."""
    last = torch.channels_last
    return quietly(copy.deepcopy(model).to(memory_format=last), image.contiguous(memory_format=last), bf16=True)


def best_layout(model: nn.Module, image: Tensor) -> Work:
    """The network in the memory layout in which it is faster, the layouts timed in turns."""
    both = {layout: copy.deepcopy(model).to(memory_format=layout) for layout in LAYOUTS}
    works = {layout: quietly(each, image.contiguous(memory_format=layout)) for layout, each in both.items()}
    medians = {layout: median(times) for layout, times in alternate(works, 7).items()}
    return works[min(medians, key=lambda layout: medians[layout])]


def _agree(ours: nn.Module, peer: nn.Module, image: Tensor) -> None:
    with torch.inference_mode():
        mine, expected = ours(image), peer(image)
    assert torch.allclose(mine, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max().clamp(min=1)))


def _mean(ratios: list[Ratio]) -> Ratio:
    def over(values: list[float]) -> float:
        return exp(sum(map(log, values)) / len(values))

    return Ratio(
        over([ratio.median for ratio in ratios]),
        over([ratio.low for ratio in ratios]),
        over([ratio.high for ratio in ratios]),
        sum(ratio.ours_seconds for ratio in ratios),
        sum(ratio.peer_seconds for ratio in ratios),
        min(ratio.rounds for ratio in ratios),
    )
