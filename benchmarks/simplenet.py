"""SimpleNet's five-million network as built and prepared for inference, against itself in PyTorch's default layout, and against
timm's ResNet-18, which people would otherwise run at that size.

Paper: simplenet.
"""

from __future__ import annotations

import timm
import torch

from benchmarks.family import autocast, best_layout
from benchmarks.harness import Row, compare, quietly
from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.registry import create


@torch.no_grad()
def run() -> list[Row]:
    torch.manual_seed(0)
    model, image = create("simplenetv1_5m_m2").eval(), torch.rand(1, 3, 224, 224)
    resnet = timm.create_model("resnet18").eval()
    plain = quietly(model, image)
    exact, fast = (prepare_for_inference(model, precision=precision, example=image) for precision in ("32", "bf16"))
    careful = autocast(resnet, image)
    what = "simplenetv1_5m_m2, one image of 224 pixels"
    better = best_layout(model, image)
    return [
        Row(what, "float32, better layout", "itself, default layout", compare(better, plain, 9)),
        Row(what, "float32, better layout", "timm resnet18, the same", compare(better, best_layout(resnet, image), 9), 1.0),
        Row(what, "prepared, 32", "itself, default layout", compare(quietly(exact, image), plain, 9), 1.0),
        Row(what, "prepared, bf16", "timm resnet18, autocast, channels-last", compare(quietly(fast, image), careful, 9), 1.0),
    ]
