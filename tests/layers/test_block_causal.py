import pytest
import torch
from torch.nn import functional as F

from paperworks.layers.block_causal import SHORT, SLICED_FROM, block_causal_attention, block_causal_mask, block_ends


def test_each_block_sees_itself_and_the_past():
    mask = block_causal_mask([1, 2, 1])
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert block_ends([1, 2, 1]) == [(0, 1), (1, 3), (3, 4)]


@pytest.mark.parametrize("sizes", [(1, 4, 9), (16, 64), (64, 100, 144)])
def test_every_path_equals_dense_masked_attention_with_its_gradient(sizes):
    length = sum(sizes)
    assert (length <= SHORT) + (SHORT < length < SLICED_FROM) + (length >= SLICED_FROM) == 1
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, length, 8, generator=generator, requires_grad=True) for _ in range(3)]
    mask = block_causal_mask(sizes)
    ours = block_causal_attention(*inputs, sizes, 0.5, mask)
    theirs = F.scaled_dot_product_attention(*inputs, attn_mask=mask, scale=0.5)
    assert torch.allclose(ours, theirs, atol=1e-5)
    weight = torch.randn(ours.shape, generator=generator)
    for a, b in zip(torch.autograd.grad((ours * weight).sum(), inputs), torch.autograd.grad((theirs * weight).sum(), inputs)):
        assert torch.allclose(a, b, atol=1e-5)
