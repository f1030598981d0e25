import pytest
import torch
from torch import nn

from paperworks.errors import InputError
from paperworks.layers.drop_path import DropPath, ScheduledDropPath, kept_share, linear_rates, set_progress


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


def test_a_path_is_kept_less_often_the_deeper_it_lies_and_the_later_it_is():
    assert kept_share(0.6) == pytest.approx(0.6)
    assert kept_share(0.6, depth=0.5) == pytest.approx(0.8) == kept_share(0.6, progress=0.5)
    assert kept_share(0.6, 0.5, 0.5) == pytest.approx(0.9)
    assert kept_share(0.6, progress=2.0) == pytest.approx(0.6) and kept_share(0.6, progress=0.0) == 1


def test_modules_are_told_how_far_training_is():
    network = nn.Sequential(ScheduledDropPath(0.4), nn.Sequential(ScheduledDropPath(0.2), DropPath(0.3)))
    drops = [module for module in network.modules() if isinstance(module, ScheduledDropPath)]
    assert [float(drop.current) for drop in drops] == [0, 0]
    for step, share in ((1, 0.25), (4, 1.0), (9, 1.0)):
        set_progress(network, step, 4)
        assert [float(drop.current) for drop in drops] == pytest.approx([0.4 * share, 0.2 * share])
    torch.manual_seed(0)
    assert float((network[0](torch.ones(4000, 1)) == 0).float().mean()) == pytest.approx(0.4, abs=0.03)
    assert not network.state_dict()
