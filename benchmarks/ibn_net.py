"""ResNet-50-IBN-a prepared for inference, against the authors' form of the layer: split, two contiguous halves, two norms, cat.

Paper: ibn-net.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from benchmarks.family import best_layout
from benchmarks.harness import Row, compare, quietly
from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.registry import create
from paperworks.layers.instance_batch_norm import InstanceBatchNorm


class Literal(nn.Module):
    def __init__(self, layer: InstanceBatchNorm):
        super().__init__()
        self.split, self.IN, self.BN = layer.split, layer.IN, layer.BN

    def forward(self, x: Tensor) -> Tensor:
        first, second = torch.split(x, [self.split, x.shape[1] - self.split], 1)
        return torch.cat((self.IN(first.contiguous()), self.BN(second.contiguous())), 1)


def literal(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, InstanceBatchNorm):
                setattr(module, name, Literal(child))
    return model


@torch.no_grad()
def run() -> list[Row]:
    torch.manual_seed(0)
    model = create("resnet50_ibn_a").eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # not the initial ones, so that a mistake in folding would show
            module.weight.uniform_(0.8, 1.2)
            module.bias.normal_(std=0.05)
    peer, image = literal(model), torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(model(image), peer(image), rtol=1e-3, atol=1e-4)
    theirs, what = best_layout(peer, image), "resnet50_ibn_a, one image of 224 pixels"
    rows = [Row(what, "float32, better layout", "authors' layer, the same", compare(best_layout(model, image), theirs, 9), 1.0)]
    for precision in ("32", "bf16"):
        fast = prepare_for_inference(model, precision=precision, example=image)  # type: ignore[arg-type]
        ratio = compare(quietly(fast, image), theirs, 9)
        target = 1.0 if precision == "32" else None
        rows.append(Row(what, f"prepared, {precision}", "authors' layer, better layout", ratio, target, note=str(fast.report)))
    return rows
