"""RepLKNet-31B and UniRepLKNet-T prepared for inference against themselves as PyTorch runs them by default (channels-first).

Papers: large-kernels, unireplknet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import Row, compare
from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.registry import create


def run() -> list[Row]:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 224, 224)
    rows = []
    for name, target in (("replknet_31b", 5.0), ("unireplknet_t", None)):
        model = create(name).eval()
        deployed = create(name).eval()
        deployed.load_state_dict(model.state_dict())
        deployed.reparameterize()
        first = _channels_first(deployed, image)
        rounds = 3 if name == "replknet_31b" else 9
        for precision in ("32", "bf16"):
            fast = prepare_for_inference(model, precision=precision, example=image)  # type: ignore[arg-type]
            ratio = compare(lambda fast=fast: fast(image), first, rounds, warmup=1)
            what = f"{name}, 224 pixels, one image"
            rows.append(Row(what, f"prepared, {precision}", "folded, channels-first float32", ratio, target=target))
    return rows


def _channels_first(model: nn.Module, image: Tensor) -> Callable[[], Any]:
    """The folded network as its authors' code runs it: NCHW from the first layer to the last."""
    stem, levels = model.stem_module(), model.levels()

    def work() -> Any:
        with torch.inference_mode():
            x = stem(image)
            for level in levels:
                for module in level:
                    x = module(x)
            return model.forward_head(x)

    return work
