"""Memory access cost of convolutions."""

import torch
from torch import nn

from paperworks.analysis.memory_traffic import activation_traffic, convolution_traffic


def test_a_layer_is_counted_as_the_formula_says():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 1, groups=3)).train()
    first, second = convolution_traffic(model, torch.rand(1, 4, 8, 8))
    assert (first.inputs, first.outputs, first.weights, first.macs) == (256, 96, 216, 96 * 36)
    assert (second.inputs, second.outputs, second.weights, second.macs) == (96, 96, 12, 96 * 2)
    assert first.total == 256 + 96 + 216 and activation_traffic([first, second]) == 256 + 96 + 192
    assert model.training and not model[0]._forward_hooks


def test_for_given_operations_equal_channels_move_least():
    side, macs = 8, 64 * 16 * 16
    traffic = {}
    for c_in in (4, 8, 16, 32, 64):
        [row] = convolution_traffic(nn.Conv2d(c_in, 256 // c_in, 1), torch.rand(1, c_in, side, side))
        assert row.macs == macs
        traffic[c_in] = row.total
    assert min(traffic, key=traffic.__getitem__) == 16
