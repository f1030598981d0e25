from __future__ import annotations

import pytest
import torch
from torch import nn

from paperworks.compression.layer_report import report_layers
from paperworks.compression.sparsity import set_masks


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False), nn.Flatten(), nn.Linear(64, 5))


def test_multiply_adds_by_hand():
    model = net()
    keep = torch.zeros(4, 3, 3, 3, dtype=torch.bool)
    keep.flatten()[:27] = True
    set_masks(model, {"0": keep})
    report = report_layers(model, torch.zeros(1, 3, 8, 8), distortions=[0.5, 0.25])
    conv, linear = report.rows
    assert (conv.positions, conv.bias_work, conv.kept, conv.ratio) == (16, 0, 27, 0.75)
    assert (linear.positions, linear.bias_work, linear.kept) == (1, 5, 320)
    assert report.sparsity == pytest.approx(81 / 428)
    assert report.flops_left == pytest.approx((27 * 16 + 320 + 5) / (108 * 16 + 320 + 5))
    columns, rows = report.table()
    assert len(columns) == len(rows[0]) and rows[0][:4] == ["0", "4 x 3 x 3 x 3", "108", "27"]


def test_a_linear_layer_on_tokens_counts_every_token():
    report = report_layers(nn.Sequential(nn.Linear(6, 2)), torch.zeros(1, 7, 6))
    assert (report.rows[0].positions, report.rows[0].bias_work) == (7, 14)


def test_the_mode_is_put_back():
    model = net().train()
    report_layers(model, torch.zeros(1, 3, 8, 8))
    assert model.training
