import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paperworks.errors import InputError
from paperworks.layers.convolution import DepthwiseConv2d
from paperworks.layers.large_kernel import DILATED_BRANCHES, ReparamDepthwise, dilated_reparam, fast_on_cpu, spread


def lively(block: nn.Module) -> nn.Module:
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, std=0.3)
    return block.eval()


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(DILATED_BRANCHES)), st.integers(1, 30), st.integers(1, 30))
def test_a_merged_kernel_is_the_sum_of_its_branches(size: int, height: int, width: int):
    torch.manual_seed(size)
    block, x = lively(dilated_reparam(3, size)), torch.randn(2, 3, height, width)
    merged = block.merged()
    with torch.no_grad():
        assert torch.allclose(merged(x), block(x), rtol=1e-4, atol=1e-4)
        assert torch.allclose(fast_on_cpu(merged)(x), merged(x), rtol=1e-4, atol=1e-5)


def test_a_spread_kernel_convolves_as_the_dilated_one():
    kernel, x = torch.randn(4, 1, 3, 3), torch.randn(1, 4, 20, 20)
    dilated = nn.functional.conv2d(x, kernel, padding=4, dilation=4, groups=4)
    assert torch.allclose(nn.functional.conv2d(x, spread(kernel, 4), padding=4, groups=4), dilated, atol=1e-5)


def test_only_slow_sizes_get_a_border():
    assert fast_on_cpu(DepthwiseConv2d(4, 13)).kernel_size == (15, 15)
    for size in (3, 9, 15, 31):
        conv = DepthwiseConv2d(4, size)
        assert fast_on_cpu(conv) is conv


def test_impossible_kernels_are_named():
    with pytest.raises(InputError, match="no dilated branches for a kernel of 19"):
        dilated_reparam(4, 19)
    with pytest.raises(InputError, match="is larger than 7x7"):
        ReparamDepthwise(4, 7, [(5, 2)])
    with pytest.raises(InputError, match="kernel size 8"):
        ReparamDepthwise(4, 8, [])


def test_equal_branches_stay_apart():
    torch.manual_seed(0)
    block, x = lively(ReparamDepthwise(2, 7, [(3, 1), (3, 1), (3, 1)])), torch.randn(1, 2, 9, 9)
    assert len(block.branches) == 3
    with torch.no_grad():
        assert torch.allclose(block.merged()(x), block(x), rtol=1e-4, atol=1e-5)
