import pytest
import torch
from torch import nn

from paperworks.analysis.receptive_field import centred_squares, effective_receptive_field
from paperworks.errors import InputError


def test_one_convolution_sees_its_kernel_and_no_more():
    conv = nn.Conv2d(1, 1, 5, padding=2)
    nn.init.ones_(conv.weight)
    nn.init.ones_(conv.bias)
    field = effective_receptive_field(lambda x: conv(x), [torch.rand(1, 21, 21) for _ in range(2)])
    assert field.contribution[8:13, 8:13].gt(0).all() and field.contribution.sum() == field.contribution[8:13, 8:13].sum()
    assert field.squares[-1].side == 5 and field.squares[-1].area == pytest.approx(25 / 441)


def test_squares_that_are_never_reached_are_none():
    ends = torch.zeros(15, 15)
    ends[0, 0] = 1.0
    assert [square.side for square in centred_squares(ends, (0.5,))] == [None]


def test_what_cannot_be_measured_is_named():
    with pytest.raises(InputError, match="feature map"):
        effective_receptive_field(lambda x: x.mean((2, 3)), [torch.rand(3, 8, 8)])
    with pytest.raises(InputError, match="finite gradient"):
        effective_receptive_field(lambda x: x * torch.nan, [torch.rand(3, 8, 8)])
    with pytest.raises(InputError, match="depends on no pixel"):
        effective_receptive_field(lambda x: x * 0, [torch.rand(3, 8, 8)])
