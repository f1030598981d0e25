import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.analysis.scaling_laws import PowerLaw, fit_power_law
from paperworks.errors import InputError


@settings(max_examples=40, deadline=None)
@given(a=st.floats(1e-3, 1e3), b=st.floats(-3, 3), count=st.integers(3, 12))
def test_an_exact_law_is_found(a: float, b: float, count: int) -> None:
    x = torch.logspace(0, 4, count, dtype=torch.float64)
    law = fit_power_law(x, a * x**b)
    assert law.a == pytest.approx(a, rel=1e-6)
    assert law.b == pytest.approx(b, abs=1e-9)
    assert law.interval == pytest.approx((b, b), abs=1e-9)
    assert law(7.0) == pytest.approx(a * 7**b, rel=1e-6)
    if abs(b) > 0.01:
        assert law.correlation == pytest.approx(1 if b > 0 else -1)


def test_agrees_with_polyfit_and_brackets_the_slope() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.logspace(0, 3, 40, dtype=torch.float64)
    y = 2 * x**-0.3 * (0.1 * torch.randn(40, generator=generator, dtype=torch.float64)).exp()
    law = fit_power_law(x, y)
    slope, intercept = np.polyfit(np.log(x.numpy()), np.log(y.numpy()), 1)
    assert (law.b, law.a) == pytest.approx((slope, np.exp(intercept)))
    assert law.correlation == pytest.approx(np.corrcoef(np.log(x), np.log(y))[0, 1])
    low, high = law.interval
    assert low < -0.3 < high and low < law.b < high and high - low < 0.1
    narrower = fit_power_law(x, y, level=0.5).interval
    assert low < narrower[0] < narrower[1] < high
    assert fit_power_law(x, y) == law  # the same draws


def test_the_interval_covers_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.logspace(0, 2, 30, dtype=torch.float64)
    hits = 0
    for _ in range(100):
        noise = 0.2 * torch.randn(30, generator=generator, dtype=torch.float64)
        low, high = fit_power_law(x, x**0.5 * noise.exp(), draws=400, generator=generator).interval
        hits += low <= 0.5 <= high
    assert 85 <= hits <= 100


def test_points_that_give_no_law() -> None:
    with pytest.raises(InputError, match="at least 3"):
        fit_power_law([1, 2], [1, 2])
    with pytest.raises(InputError, match="3 x and 4 y"):
        fit_power_law([1, 2, 3], [1, 2, 3, 4])
    with pytest.raises(InputError, match="y holds"):
        fit_power_law([1, 2, 3], [1, 0, 3])
    with pytest.raises(InputError, match="x = 2"):
        fit_power_law([2, 2, 2], [1, 2, 3])
    with pytest.raises(InputError, match="at least 4"):
        fit_power_law([1, 2, 3], [3, 2, 1], offset=True)
    with pytest.raises(InputError, match=r"2 different x: .* three"):
        fit_power_law([1, 1, 2, 2], [4, 3, 2, 1], offset=True)


@settings(max_examples=15, deadline=None)
@given(a=st.floats(0.5, 50), b=st.floats(-1.5, -0.2), c=st.sampled_from([0.0, 0.1, 2.0]), count=st.integers(6, 12))
def test_an_exact_law_that_levels_off_is_found(a: float, b: float, c: float, count: int) -> None:
    x = torch.logspace(0, 4, count, dtype=torch.float64)
    law = fit_power_law(x, a * x**b + c, offset=True, draws=1)
    assert (law.a, law.b) == pytest.approx((a, b), rel=1e-3)
    assert law.c == pytest.approx(c, abs=1e-3 * (a + c))
    assert law(7.0) == pytest.approx(a * 7**b + c, rel=1e-4)


def test_a_floor_with_noise_and_its_interval() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.logspace(0, 4, 20, dtype=torch.float64)
    y = (3 * x**-0.5 + 0.2) * (0.02 * torch.randn(20, generator=generator, dtype=torch.float64)).exp()
    law, straight = fit_power_law(x, y, offset=True, draws=60), fit_power_law(x, y)
    low, high = law.interval
    assert low < -0.5 < high and high - low < 0.2 and law.c == pytest.approx(0.2, rel=0.1)
    assert straight.interval[0] > -0.5 and straight.c == 0  # a straight line misjudges what levels off
    assert -1 <= law.correlation < straight.correlation < 0


def test_a_curve_to_draw() -> None:
    law = PowerLaw(2.0, -0.5, -1.0, (-0.5, -0.5), 1.0)
    xs, ys = law.curve(1, 10_000, 5)
    assert xs == pytest.approx([1, 10, 100, 1000, 10_000]) and ys == pytest.approx([2 * x**-0.5 + 1 for x in xs])
    with pytest.raises(InputError, match="low < high"):
        law.curve(10, 1)
