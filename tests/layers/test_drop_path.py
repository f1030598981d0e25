import pytest
import torch

from paperworks.errors import InputError
from paperworks.layers.drop_path import DropPath, linear_rates


def test_samples_are_dropped_whole_and_the_mean_stays():
    torch.manual_seed(0)
    y = DropPath(0.25)(torch.ones(4000, 3, 2))
    per_sample = y.flatten(1)
    assert bool((per_sample == per_sample[:, :1]).all())
    assert per_sample[:, 0].unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert abs(float(y.mean()) - 1) < 0.05


def test_evaluation_and_rate_zero_change_nothing():
    x = torch.randn(3, 4)
    assert DropPath(0.5).eval()(x) is x and DropPath(0.0)(x) is x


def test_a_rate_of_one_is_refused():
    with pytest.raises(InputError, match="below 1"):
        DropPath(1.0)


def test_rates_grow_over_all_blocks():
    assert linear_rates(0.3, [1, 2, 1]) == [[0.0], [pytest.approx(0.1), pytest.approx(0.2)], [pytest.approx(0.3)]]
    assert linear_rates(0.3, [1]) == [[0.0]]
