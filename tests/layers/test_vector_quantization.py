import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperworks.layers import vector_quantization
from paperworks.layers.vector_quantization import CodeUsage, nearest_code, restart_codes


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 50), st.integers(1, 9), st.integers(1, 200))
def test_nearest_is_the_smallest_distance_in_any_chunking(seed, count, codes, width, chunk):
    generator = torch.Generator().manual_seed(seed)
    vectors, table = torch.randn(count, width, generator=generator), torch.randn(codes, width, generator=generator)
    whole = vector_quantization.CHUNK
    vector_quantization.CHUNK = chunk
    try:
        found = nearest_code(vectors, table)
        by_angle = nearest_code(vectors, table, cosine=True)
    finally:
        vector_quantization.CHUNK = whole
    distance = torch.cdist(vectors.double(), table.double())
    assert torch.allclose(distance.gather(1, found[:, None])[:, 0], distance.min(1).values, atol=1e-5)
    angle = torch.nn.functional.cosine_similarity(vectors[:, None], table[None], dim=-1)
    assert torch.allclose(angle.gather(1, by_angle[:, None])[:, 0], angle.max(1).values, atol=1e-5)


def test_usage_and_perplexity_count_over_all_batches():
    usage = CodeUsage(8)
    usage.update(torch.tensor([0, 1]))
    usage.update(torch.tensor([[2, 3]]))
    assert usage.usage == 0.5
    assert math.isclose(usage.perplexity, 4, rel_tol=1e-6)
    assert CodeUsage(8).perplexity == 1


def test_only_dead_codes_are_replaced_and_only_by_candidates():
    codes, candidates = torch.zeros(5, 2), torch.ones(3, 2)
    dead = torch.tensor([True, False, False, True, False])
    assert restart_codes(codes, dead, candidates, torch.Generator().manual_seed(0)) == 2
    assert codes[:, 0].tolist() == [1, 0, 0, 1, 0]


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("count", [1, 5, 256, 700])
def test_searching_block_by_block_finds_the_same_codes(monkeypatch, count, cosine):
    generator = torch.Generator().manual_seed(count)
    codes, vectors = torch.randn(count, 6, generator=generator), torch.randn(70, 6, generator=generator)
    plain = nearest_code(vectors, codes, cosine)
    monkeypatch.setattr(vector_quantization, "MANY", 1)
    monkeypatch.setattr(vector_quantization, "PIECE", (16, 512))
    assert torch.equal(nearest_code(vectors, codes, cosine), plain)
    assert nearest_code(vectors[:0], codes, cosine).shape == (0,)
