"""The example in docs/compress.md is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from paperworks.compression.allocation import Allocation
from paperworks.compression.sparsity import sparsity

PAGE = Path(__file__).parents[2] / "docs/compress.md"


def test_example():
    example = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert example
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))
    names: dict[str, object] = {"model": model, "images": torch.rand(8, 3, 8, 8)}
    exec(example[1], names)
    plan = names["plan"]
    assert isinstance(plan, Allocation) and plan.gap == 0 and sparsity(model) >= 0.8
