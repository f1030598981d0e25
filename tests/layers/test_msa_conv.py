import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.errors import InputError
from paperworks.layers.msa_conv import MSAConv2d, shifted, window_mix, window_scores
from paperworks.papers.tic import unfolded


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([(1, 1), (3, 3), (5, 1), (3, 7)]),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 4),
)
def test_equals_the_unfolded_form_with_gradients(kernel, dilation, height, width, channels):
    torch.manual_seed(height * 10 + width)
    inputs = [torch.randn(2, channels, height, width, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    q, k, v = inputs
    ours = window_mix(window_scores(q, k, kernel, dilation).softmax(1), v, kernel, dilation)
    theirs = unfolded(q, k, v, kernel, dilation)
    assert torch.allclose(ours, theirs)
    weights = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad((ours * weights).sum(), inputs), torch.autograd.grad((theirs * weights).sum(), inputs)):
        assert torch.allclose(a, b)


def test_neighbours_outside_score_zero_and_take_part():
    x = torch.ones(1, 1, 1, 1)
    weights = window_scores(x, x, (3, 3)).softmax(1)
    assert weights[0, 4, 0, 0] == pytest.approx(torch.e / (torch.e + 8), rel=1e-6)


def test_shifts_go_four_ways_and_back():
    x = torch.randn(2, 8, 5, 7)
    moved = shifted(x, 2)
    assert torch.equal(moved[:, :2], x[:, :2].roll(-2, 2)) and torch.equal(moved[:, 6:], x[:, 6:].roll(2, 3))
    assert torch.equal(shifted(moved, -2), x)


def test_depthwise_has_a_head_per_channel():
    layer, x = MSAConv2d(4, 3, kind="depthwise"), torch.randn(1, 4, 6, 6)
    q, k, v = layer.qkv_conv(x).chunk(3, 1)
    alone = [unfolded(q[:, i : i + 1], k[:, i : i + 1], v[:, i : i + 1], (3, 3), 1) for i in range(4)]
    assert torch.allclose(layer(x), torch.cat(alone, 1), atol=1e-5)


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="even side"):
        MSAConv2d(4, (3, 2))
    with pytest.raises(InputError, match="into 3 heads"):
        MSAConv2d(4, 3, heads=3)
    with pytest.raises(InputError, match="differ in shape"):
        window_scores(torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 5), (3, 3))
    with pytest.raises(InputError, match="float16"):
        window_scores(*[torch.rand(1, 2, 4, 4).half()] * 2, (3, 3))
