import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.analysis.metrics import GaussianStats, frechet_distance, inception_score, lpips, precision_recall, psnr, ssim
from paperworks.errors import InputError


def normal(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(count: int, width: int) -> torch.Tensor:
    """Features whose sample mean is 0 and whose sample covariance is the identity."""
    centred = normal(count, width)
    centred = centred - centred.mean(0)
    return torch.linalg.qr(centred).Q * math.sqrt(count - 1)


def test_frechet_closed_forms() -> None:
    base = whitened(50, 4)
    shift = torch.tensor([1.0, 2, 0, 0], dtype=torch.float64)
    assert frechet_distance(base, base) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(base, base + shift) == pytest.approx(5)
    # commuting covariances: the sum of squared differences of the deviations
    deviations = torch.tensor([1.0, 3, 0.5, 2], dtype=torch.float64)
    assert frechet_distance(base, base * deviations + shift) == pytest.approx(5 + 0 + 4 + 0.25 + 1)


def test_frechet_agrees_with_the_matrix_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = normal(80, 6) @ normal(6, 6, 1), normal(90, 6, 2) @ normal(6, 6, 3) + 0.3
    one, two = torch.cov(a.T), torch.cov(b.T)
    root = linalg.sqrtm((one @ two).numpy()).real.trace()
    wanted = (a.mean(0) - b.mean(0)).square().sum() + one.trace() + two.trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(float(wanted), rel=1e-9)


def test_frechet_with_fewer_images_than_features() -> None:
    a, b = normal(10, 40), normal(12, 40, 1)
    # the trace of the root is the nuclear norm of the centred features' product
    scaled = [(each - each.mean(0)) / math.sqrt(len(each) - 1) for each in (a, b)]
    overlap = torch.linalg.svdvals(scaled[0] @ scaled[1].T).sum()
    wanted = (a.mean(0) - b.mean(0)).square().sum() + sum(each.square().sum() for each in scaled) - 2 * overlap
    with pytest.warns(UserWarning, match="40 features from 10 images"):
        assert frechet_distance(a, b) == pytest.approx(float(wanted), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=4), offset=st.sampled_from([0.0, 1e6]))
def test_streaming_equals_all_at_once(cuts: list[int], offset: float) -> None:
    features = normal(60, 5) + offset
    stats = GaussianStats()
    edges = [0, *sorted(cuts), 60]
    for start, end in itertools.pairwise(edges):
        stats.update(features[start:end])
    assert stats.count == 60
    torch.testing.assert_close(stats.mean, features.mean(0))
    torch.testing.assert_close(stats.covariance, torch.cov(features.T), rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore:a Frechet distance")
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), count=st.integers(2, 30), width=st.integers(1, 12), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_frechet_is_a_symmetric_distance(seed: int, count: int, width: int, scale: float) -> None:
    a, b = normal(count, width, seed) * scale, normal(count + 3, width, seed + 1)
    size = float(a.square().mean() + b.square().mean()) * width
    assert frechet_distance(a, b) >= 0
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-5 * size)
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-5 * size)


def test_features_that_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="at least 2 images"):
        frechet_distance(normal(1, 3), normal(5, 3))
    with pytest.raises(InputError, match="one network"):
        frechet_distance(normal(5, 3), normal(5, 4))
    with pytest.raises(InputError, match="one network"):
        GaussianStats().update(normal(5, 3)).update(normal(5, 4))
    with pytest.raises(InputError, match="NaN"):
        frechet_distance(torch.full((5, 3), torch.nan), normal(5, 3))
    with pytest.raises(InputError, match=r"\[N, D\]"):
        frechet_distance(torch.zeros(2, 3, 4), normal(5, 3))


def test_precision_and_recall_of_special_cases() -> None:
    real = normal(60, 3)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)
    one_place = real[:1] + 1e-3 * normal(60, 3, 1)
    precision, recall = precision_recall(real, one_place)
    assert precision == 1 and recall < 0.1
    same = torch.ones(10, 3)
    assert precision_recall(same * 0.1, same * 0.1) == (1, 1)  # balls of radius 0 hold what is equal


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), k=st.integers(1, 4), chunk=st.integers(1, 40))
def test_precision_recall_by_definition(seed: int, k: int, chunk: int) -> None:
    real, fake = normal(25, 3, seed), normal(20, 3, seed + 1) * 1.3 + 0.4

    def covered(points: torch.Tensor, others: torch.Tensor) -> float:
        radius = [sorted((o - other).norm().item() for other in others)[k] for o in others]
        return sum(any((p - o).norm().item() <= r for o, r in zip(others, radius)) for p in points) / len(points)

    assert precision_recall(real, fake, k, chunk) == pytest.approx((covered(fake, real), covered(real, fake)))


def test_precision_recall_needs_more_images_than_k() -> None:
    with pytest.raises(InputError, match="k=3"):
        precision_recall(normal(3, 2), normal(10, 2))


def test_inception_score() -> None:
    assert inception_score(torch.eye(10)) == pytest.approx(10)
    assert inception_score(torch.full((7, 10), 0.1)) == pytest.approx(1)
    assert inception_score(torch.eye(10)[:1].expand(5, -1)) == pytest.approx(1)
    with pytest.raises(InputError, match="softmax"):
        inception_score(torch.randn(4, 10, generator=torch.Generator().manual_seed(0)))


def test_psnr_is_the_mean_over_images() -> None:
    reference = torch.full((2, 3, 16, 16), 0.5)
    made = reference + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    assert psnr(made, reference) == pytest.approx((20 + 40) / 2, abs=1e-3)
    assert psnr(reference, reference) == math.inf


def test_ssim() -> None:
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert ssim(images, images) == pytest.approx(1)
    assert ssim(1 - images, images) < 0
    # flat images: the luminance term is left
    a, b, c = 0.2, 0.6, 0.01**2
    flat = torch.ones(1, 1, 16, 16)
    assert ssim(flat * a, flat * b) == pytest.approx((2 * a * b + c) / (a * a + b * b + c), rel=1e-4)
    with pytest.raises(InputError, match="too small"):
        ssim(images[..., :8], images[..., :8])


def test_pairs_must_match_and_lie_in_the_unit_range() -> None:
    images = torch.rand(2, 3, 16, 16)
    with pytest.raises(InputError, match="one size"):
        psnr(images, images[:1])
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        psnr(images * 255, images)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        ssim((images * 255).to(torch.uint8), (images * 255).to(torch.uint8))


def test_lpips_without_its_weights_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("torchmetrics.image.lpip")

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(image, "LearnedPerceptualImagePatchSimilarity", offline)
    images = torch.rand(1, 1, 32, 32)
    with pytest.raises(InputError, match=r"alex weights .*no route to host\).*ssim$") as raised:
        lpips(images, images)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="32 x 32"):
        lpips(images[..., :16], images[..., :16])
