import pytest
import torch

from paperworks.errors import InputError
from paperworks.layers.kv_cache import KVCache


def test_appended_positions_come_back_with_the_past():
    cache = KVCache(2, 3, 4, 6, 5)
    first, second = torch.randn(3, 4, 2, 5), torch.randn(3, 4, 3, 5)
    for layer in range(2):
        cache.append(layer, first + layer, -first - layer)
    cache.commit(2)
    for layer in range(2):
        keys, values = cache.append(layer, second, second)
        assert torch.equal(keys, torch.cat((first + layer, second), 2))
        assert torch.equal(values, torch.cat((-first - layer, second), 2))


def test_provisional_positions_are_overwritten():
    cache = KVCache(1, 1, 1, 4, 2)
    cache.append(0, torch.ones(1, 1, 3, 2), torch.ones(1, 1, 3, 2))
    cache.commit(1)  # only the first of the three stays
    keys, _ = cache.append(0, torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    assert keys[0, 0, :, 0].tolist() == [1, 0]
    cache.commit(1)
    cache.rollback(1)
    assert cache.used == 1


def test_a_full_cache_says_so():
    cache = KVCache(1, 1, 1, 4, 2)
    with pytest.raises(InputError, match="holds 4 positions and was asked for 5"):
        cache.append(0, torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2))
