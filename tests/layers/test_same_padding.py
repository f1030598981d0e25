"""TensorFlow's padding: as explicit padding would have it, at even and odd sizes."""

import pytest
import torch
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.convolution import SameConv2d
from paperworks.layers.same_padding import SameAvgPool2d, SameMaxPool2d, same_pads


def test_the_odd_pixel_comes_after():
    assert same_pads(7, 3, 2) == (1, 1) and same_pads(8, 3, 2) == (0, 1)
    assert same_pads(8, 7, 2) == (2, 3) and same_pads(5, 1, 2) == (0, 0)
    assert same_pads(5, 3, 1, dilation=2) == (2, 2)


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (7, 10)])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_poolings_and_convolutions_pad_as_written_out(size, kernel):
    x = torch.randn(2, 4, *size)
    (above, below), (left, right) = (same_pads(side, kernel, 2) for side in size)
    pads = (left, right, above, below)
    assert torch.equal(SameMaxPool2d(kernel, 2)(x), F.max_pool2d(F.pad(x, pads, value=-torch.inf), kernel, 2))
    counts = F.avg_pool2d(F.pad(torch.ones_like(x), pads), kernel, 2)
    zeros = F.avg_pool2d(F.pad(x, pads), kernel, 2)
    assert torch.allclose(SameAvgPool2d(kernel, 2)(x), zeros / counts, atol=1e-6)
    assert torch.allclose(SameAvgPool2d(kernel, 2, count_padding=True)(x), zeros)
    conv = SameConv2d(4, 4, kernel, 2, groups=4)
    assert torch.allclose(conv(x), F.conv2d(F.pad(x, pads), conv.weight, conv.bias, 2, groups=4), atol=1e-5)


def test_what_is_traced_at_one_size_works_at_another():
    pool = torch.nn.Sequential(SameAvgPool2d(3, 2), SameMaxPool2d(3, 2), SameConv2d(1, 1, 3, 2))
    with torch.no_grad():
        traced = torch.jit.trace(pool, torch.rand(1, 1, 16, 16), check_trace=False)
        for size in (16, 17, 22):
            x = torch.rand(1, 1, size, size)
            assert torch.allclose(traced(x), pool(x), atol=1e-6)


def test_a_pooling_smaller_than_its_stride_is_refused():
    with pytest.raises(InputError, match="skips pixels"):
        SameMaxPool2d(1, 2)
