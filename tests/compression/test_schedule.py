from __future__ import annotations

import pytest

from paperworks.compression.schedule import iterative_targets
from paperworks.errors import InputError


def test_a_fifth_of_the_rest_each_time_until_the_target():
    assert iterative_targets(0.5) == pytest.approx([0.2, 0.36, 0.488, 0.5])
    assert iterative_targets(0.36) == pytest.approx([0.2, 0.36])
    assert len(iterative_targets(1 - 0.8**20)) == 20


def test_one_shot_and_going_on():
    assert iterative_targets(0.9, rate=1) == [0.9]
    assert iterative_targets(0.8, rate=0.5, start=0.5) == pytest.approx([0.75, 0.8])


@pytest.mark.parametrize(("final", "rate", "start"), [(0.5, 0, 0), (0.5, 1.1, 0), (1.0, 0.2, 0), (0.5, 0.2, 0.64)])
def test_impossible_schedules_are_refused(final, rate, start):
    with pytest.raises(InputError):
        iterative_targets(final, rate, start)
