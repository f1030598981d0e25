import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperworks.data.seeds import mix, permutation, share, uniforms


def test_mix_is_pure_and_tells_neighbours_apart() -> None:
    assert mix(1, 2, 3) == mix(1, 2, 3)
    seeds = {mix(a, b, c) for a in range(-5, 5) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**63 for seed in seeds)
    assert mix(1, 0) != mix(0, 1) != mix(1)


def test_uniforms_depend_on_their_coordinates_only() -> None:
    whole = uniforms(7, 2, range(100), 3)
    assert torch.equal(uniforms(7, 2, [42, 3], 3), whole[[42, 3]])
    for other in (uniforms(8, 2, range(100), 3), uniforms(7, 3, range(100), 3)):
        assert not torch.isclose(other, whole).any()


def test_uniforms_are_uniform_and_unrelated() -> None:
    drawn = uniforms(0, 0, range(20_000), 4)
    assert drawn.min() >= 0 and drawn.max() < 1
    counts = torch.histc(drawn.flatten(), 20, 0, 1)
    assert ((counts - 4000) ** 2 / 4000).sum() < 45  # chi-square with 19 degrees of freedom, p = 0.0007
    relation = torch.corrcoef(torch.cat([drawn[:-1].T, drawn[1:].T]))  # also between neighbouring indices
    assert (relation - torch.eye(8)).abs().max() < 0.03


def test_permutation() -> None:
    assert torch.equal(permutation(50, 1, 2), permutation(50, 1, 2))
    assert not torch.equal(permutation(50, 1, 2), permutation(50, 1, 3))
    assert permutation(50, 1, 2).sort().values.tolist() == list(range(50))


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data())
def test_share_is_exact_and_stratified(classes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(classes)))
    labels = torch.tensor(classes)
    mask = share([f"{number}.jpg" for number in range(len(classes))], labels, count, seed=3)
    assert mask.sum() == count
    for label in set(classes):
        size = classes.count(label)
        assert abs(mask[labels.numpy() == label].sum() - size * count / len(classes)) <= 1 + 1e-9


def test_share_ignores_the_order_and_follows_the_seed() -> None:
    keys = [f"{number}.jpg" for number in range(40)]
    chosen = {key for key, taken in zip(keys, share(keys, None, 10, 0)) if taken}
    assert chosen == {key for key, taken in zip(keys[::-1], share(keys[::-1], None, 10, 0)) if taken}
    assert chosen != {key for key, taken in zip(keys, share(keys, None, 10, 1)) if taken}
    longer = [*keys, "new.jpg"]
    kept = {key for key, taken in zip(longer, share(longer, None, 10, 0)) if taken}
    assert len(chosen - kept) <= 1


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**70])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert uniforms(seed, 0, [0], 1).shape == (1, 1) and len(permutation(3, seed, 0)) == 3
