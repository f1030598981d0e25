"""The scans of state-space layers against loops that take one step at a time, outputs and gradients."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers import linear_scan as lanes
from paperworks.layers import selective_scan as selective
from paperworks.layers import ssd_scan as ssd
from paperworks.layers.linear_scan import linear_scan
from paperworks.layers.selective_scan import selective_scan
from paperworks.layers.softplus import softplus
from paperworks.layers.ssd_scan import ssd_scan


def by_steps(a: Tensor, b: Tensor) -> Tensor:
    state, states = torch.zeros_like(b[0]), []
    for decay, added in zip(a, b):
        state = decay * state + added
        states.append(state)
    return torch.stack(states)


def same(ours, theirs, inputs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Outputs and all gradients of two functions agree."""
    found, expected = ours(**inputs), theirs(**inputs)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9), dtype=expected.dtype)
    assert torch.allclose(found, expected, atol=tolerance * float(expected.detach().abs().max()))
    for name, one, other in zip(
        inputs,
        torch.autograd.grad(found, list(inputs.values()), weight),
        torch.autograd.grad(expected, list(inputs.values()), weight),
    ):
        assert torch.allclose(one, other, atol=tolerance * float(other.abs().max()) + 1e-12), name


def drawn(seed: int = 0, dtype: torch.dtype = torch.float32, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}
    if "A" in found:
        found["A"] = -found["A"].exp()
    return {name: value.requires_grad_() for name, value in found.items()}


@pytest.mark.parametrize("length", [2, 12, 13, 50, 200])
@pytest.mark.parametrize(("width", "shared"), [(4, 4), (4, 1), (2000, 2000)])
def test_linear_scan_is_the_loop(length, width, shared):
    inputs = drawn(dtype=torch.float64, a=(length, 3, shared), b=(length, 3, width))
    inputs["a"] = inputs["a"].detach().sigmoid().requires_grad_()
    same(linear_scan, by_steps, inputs, 1e-10)
    plain = {name: value.detach() for name, value in inputs.items()}
    assert torch.allclose(lanes._doubling(**plain), by_steps(**plain))
    assert torch.allclose(lanes._doubling_any(**plain), by_steps(**plain))


def test_linear_scan_of_zero_decays_and_of_one_step():
    a, b = torch.zeros(40, 2), torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(linear_scan(a, b), b) and torch.equal(linear_scan(a[:1], b[:1]), b[:1])
    with pytest.raises(InputError, match="empty"):
        linear_scan(a[:0], b[:0])
    with pytest.raises(InputError, match="equal length"):
        linear_scan(a, b[:3])


@pytest.mark.parametrize("scale", [1.0, 10.0, 60.0])
def test_softplus_without_gradients_is_exact(scale):
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * scale
    expected = F.softplus(x.double())
    with torch.no_grad():
        found = softplus(x).double()
    assert ((found - expected).abs() <= 3e-7 * expected + 1e-37).all()
    assert torch.equal(softplus(x.requires_grad_()), F.softplus(x))


def mamba(u, delta, A, B, C, D, z, delta_bias) -> Tensor:
    """The selective scan, literally."""
    dt = F.softplus(delta + delta_bias[:, None])
    groups = B.shape[1]
    B, C = (each.repeat_interleave(u.shape[1] // groups, 1) for each in (B, C))
    state, outputs = torch.zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        state = torch.exp(dt[:, :, t, None] * A) * state + (dt[:, :, t] * u[:, :, t])[..., None] * B[..., t]
        outputs.append((state * C[..., t]).sum(2) + D * u[:, :, t])
    return torch.stack(outputs, 2) * F.silu(z)


@pytest.mark.parametrize(("length", "state", "groups"), [(30, 1, 1), (70, 1, 2), (70, 4, 2), (150, 16, 1)])
def test_selective_scan_is_the_loop(length, state, groups, monkeypatch):
    monkeypatch.setattr(selective, "AT_ONCE", 64 * 8 * 2)  # several segments
    channels, maps = (2, 8, length), (2, groups, state, length)
    inputs = drawn(u=channels, delta=channels, A=(8, state), B=maps, C=maps, D=(8,), z=channels, delta_bias=(8,))
    same(lambda **given: selective_scan(**given, delta_softplus=True)[0], mamba, inputs)
    with torch.no_grad():
        y, last = selective_scan(**inputs, delta_softplus=True)
        assert torch.allclose(y, mamba(**inputs), atol=1e-4) and last.shape == (2, 8, state)
        # views whose numbers do not lie in a row, and a half-precision input
        turned = {name: value.mT.contiguous().mT if value.ndim == 3 else value for name, value in inputs.items()}
        assert torch.allclose(selective_scan(**turned, delta_softplus=True)[0], y, atol=1e-6)
        inputs["u"] = inputs["u"].bfloat16()
        assert selective_scan(**inputs, delta_softplus=True)[0].dtype == torch.bfloat16


def test_selective_scan_says_what_does_not_fit():
    good = {
        name: value.detach() for name, value in drawn(u=(1, 4, 9), delta=(1, 4, 9), A=(4, 2), B=(1, 2, 9), C=(1, 2, 9)).items()
    }
    assert selective_scan(**good)[0].shape == (1, 4, 9)
    for changed, words in (
        ({"A": good["A"].abs()}, "positive"),
        ({"delta": good["delta"][:, :2]}, "alike"),
        ({"B": good["B"][:, :1]}, "groups, state"),
        ({name: good[name][..., :0] for name in ("u", "delta", "B", "C")}, "empty"),
        ({name: torch.ones(1, 3, 2, 9) for name in ("B", "C")}, "3 groups"),
    ):
        with pytest.raises(InputError, match=words):
            selective_scan(**{**good, **changed})


def mamba2(x, dt, A, B, C, D, dt_bias) -> Tensor:
    """The scan of Mamba-2, literally."""
    step = F.softplus(dt + dt_bias)
    B, C = (each.repeat_interleave(x.shape[2] // each.shape[2], 2) for each in (B, C))
    state, outputs = torch.zeros(x.shape[0], x.shape[2], B.shape[3], x.shape[3]), []
    for t in range(x.shape[1]):
        added = step[:, t, :, None, None] * B[:, t, :, :, None] * x[:, t, :, None]
        state = torch.exp(step[:, t] * A)[..., None, None] * state + added
        outputs.append((C[:, t, :, None] @ state).squeeze(2) + D[:, None] * x[:, t])
    return torch.stack(outputs, 1)


@pytest.mark.parametrize(("length", "groups", "chunk"), [(1, 1, 32), (20, 1, 32), (64, 2, 16), (75, 4, 16)])
def test_ssd_scan_is_the_loop(length, groups, chunk, monkeypatch):
    monkeypatch.setattr(ssd, "AT_ONCE", 4 * 2 * chunk * chunk * 2)  # several stretches in inference
    inputs = drawn(
        x=(2, length, 4, 8),
        dt=(2, length, 4),
        A=(4,),
        B=(2, length, groups, 6),
        C=(2, length, groups, 6),
        D=(4,),
        dt_bias=(4,),
    )
    same(lambda **given: ssd_scan(**given, dt_softplus=True, chunk=chunk), mamba2, inputs)
    with torch.no_grad():
        assert torch.allclose(ssd_scan(**inputs, dt_softplus=True, chunk=chunk), mamba2(**inputs), atol=1e-4)


def test_ssd_scan_forgets_at_once_without_overflow():
    inputs = drawn(x=(1, 100, 1, 4), dt=(1, 100, 1), A=(1,), B=(1, 100, 1, 3), C=(1, 100, 1, 3))
    inputs["A"], inputs["dt"] = torch.tensor([-1e4]), torch.rand(1, 100, 1) + 1
    found = ssd_scan(**inputs)
    expected = inputs["dt"][..., None] * (inputs["B"] * inputs["C"]).sum(-1, keepdim=True) * inputs["x"]
    assert torch.allclose(found, expected, atol=1e-5)


def test_ssd_scan_says_what_does_not_fit():
    good = {n: v.detach() for n, v in drawn(x=(1, 9, 2, 4), dt=(1, 9, 2), A=(2,), B=(1, 9, 1, 3), C=(1, 9, 1, 3)).items()}
    for changed, words in (
        ({"dt": good["dt"][:, :3]}, "takes x"),
        ({name: torch.ones(1, 9, 3, 3) for name in ("B", "C")}, "divides them"),
        ({name: good[name][:, :0] for name in ("x", "dt", "B", "C")}, "empty"),
    ):
        with pytest.raises(InputError, match=words):
            ssd_scan(**{**good, **changed})
