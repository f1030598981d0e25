"""TiC: settings by stage, where blocks pool, shift and dilate, the ablation without attention."""

from typing import Any

import pytest
import torch

from paperworks.backbones.tic import TiC, TiCBlock
from paperworks.errors import InputError
from paperworks.layers.msa_conv import MSAConv2d

SMALL: dict[str, Any] = {"depths": (1, 3), "dims": (8, 16), "heads": (2, 4), "num_classes": 3}


def test_one_value_stands_for_all_stages():
    one = TiC(**SMALL, kernel_sizes=3, dilations=2)
    several = TiC(**SMALL, kernel_sizes=(3, 3), dilations=(2, 2))
    several.load_state_dict(one.state_dict())
    images = torch.rand(2, 3, 24, 20)
    assert torch.equal(one.eval()(images), several.eval()(images))
    with pytest.raises(InputError, match="kernel_sizes has 3 entries for 2 stages"):
        TiC(**SMALL, kernel_sizes=(3, 3, 3))


def test_every_second_block_shifts_and_dilates_every_third_pools():
    blocks = [block for block in TiC(**SMALL, kernel_sizes=3, dilations=2, shift=1).modules() if isinstance(block, TiCBlock)]
    assert [(block.attn.shift, block.attn.dilation) for block in blocks] == [(0, 1), (0, 1), (1, 2), (0, 1)]
    assert [block.pool for block in blocks] == [2, 1, 1, 2]  # the only block of a short stage pools too


def test_the_ablation_has_no_attention():
    model = TiC(**SMALL, kernel_sizes=3, mixing="convolution").eval()
    assert not any(isinstance(module, MSAConv2d) for module in model.modules())
    assert model(torch.rand(1, 3, 24, 20)).shape == (1, 3)


def test_cells_are_counted_from_one():
    with pytest.raises(InputError, match="dilation 0"):
        MSAConv2d(4, 3, dilation=0)
