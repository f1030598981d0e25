"""How good made images are: distances between sets of features, and likeness to a reference image by image."""

from __future__ import annotations

import functools
import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from paperworks.errors import InputError

# --- sets of features -------------------------------------------------------------------------------------------------


class GaussianStats:
    """Mean and covariance of features that arrive in batches, in float64. Batches of any sizes give the same result.

    What the Fréchet distance needs: a big set is seen once and only D x D numbers are kept.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._scatter = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, features: Tensor) -> GaussianStats:
        """Add float [N, D]; returns itself. Raises InputError for other shapes, another D, or NaN and infinity."""
        features = _checked(features)
        count, width = features.shape
        if self.count == 0:
            self._mean, self._scatter = features.new_zeros(width), features.new_zeros(width, width)
        elif width != len(self._mean):
            raise InputError(
                f"features have {width} numbers each, those before had {len(self._mean)}: use one network for both"
            )
        if count == 0:
            return self
        # two groups merged around their common mean: no difference of large sums ever appears
        mean = features.mean(0)
        centred = features - mean
        total = self.count + count
        between = mean - self._mean
        self._scatter = self._scatter + centred.T @ centred + torch.outer(between, between) * (self.count * count / total)
        self._mean = self._mean + between * (count / total)
        self.count = total
        return self

    @property
    def mean(self) -> Tensor:
        """float64 [D]."""
        self._needs_two()
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """float64 [D, D], with N - 1 in the denominator."""
        self._needs_two()
        return self._scatter / (self.count - 1)

    def distance(self, other: GaussianStats) -> float:
        """The Fréchet distance between the two Gaussians (1706.08500, eq. 6): |m1 - m2|² + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

        The trace of the root is that of (S1^(1/2) S2 S1^(1/2))^(1/2), which has the same eigenvalues and is symmetric, so
        eigenvalues come from a solver that cannot turn complex, and rounding below zero is cut off.
        With fewer images than features the value is right for these images, but far above that of many: a warning says so.
        """
        mine, theirs = self.covariance, other.covariance
        if mine.shape != theirs.shape:
            raise InputError(f"features of {len(mine)} and {len(theirs)} numbers cannot be compared: use one network for both")
        fewest = min(self.count, other.count)
        if fewest <= len(mine):
            warnings.warn(
                f"a Frechet distance of {len(mine)} features from {fewest} images is biased upwards: compare it only with "
                "distances from as many images",
                stacklevel=2,
            )
        values, vectors = torch.linalg.eigh(mine)
        root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
        product = root @ theirs @ root
        overlap = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
        apart = (self.mean - other.mean).square().sum()
        return max(float(apart + mine.trace() + theirs.trace() - 2 * overlap), 0.0)

    def _needs_two(self) -> None:
        if self.count < 2:
            raise InputError(f"a covariance needs at least 2 images, there are {self.count}")


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between features [N, D] and [M, D] (FID when the features are Inception's). 0 is equal.

    It shrinks with the number of images: compare only figures made from the same number of them.
    """
    return GaussianStats().update(a).distance(GaussianStats().update(b))


@torch.no_grad()
def precision_recall(real: Tensor, fake: Tensor, k: int = 3, chunk: int = 1024) -> tuple[float, float]:
    """Improved precision and recall (1904.06991, eq. 1 and 2) of features [N, D] and [M, D], exact.

    Precision is the share of fakes that lie within the distance of some real image to its k-th nearest real neighbour; recall
    is the same with the roles exchanged. `chunk` rows of distances are held at a time. The paper uses N = M.
    """
    real, fake = _checked(real), _checked(fake)
    if real.shape[1] != fake.shape[1]:
        raise InputError(
            f"features of {real.shape[1]} and {fake.shape[1]} numbers cannot be compared: use one network for both"
        )
    if k < 1 or min(len(real), len(fake)) <= k:
        raise InputError(
            f"k={k} needs at least {max(k, 1) + 1} images on each side and k >= 1, not {len(real)} and {len(fake)}"
        )
    centre = real.mean(0)  # distances do not change, their rounding gets smaller
    real, fake = real - centre, fake - centre
    return _covered(fake, real, k, chunk), _covered(real, fake, k, chunk)


def inception_score(probabilities: Tensor) -> float:
    """exp of the mean KL divergence of p(y|x) from p(y) (1606.03498, section 4), from class probabilities [N, K] whose rows sum
    to 1. Lies in [1, K]. One group: the published figures are means over 10 groups."""
    p = _checked(probabilities)
    if len(p) == 0 or (p < 0).any() or not torch.allclose(p.sum(1), p.new_ones(len(p)), atol=1e-3):
        raise InputError("inception_score takes probabilities [N, K] with rows that sum to 1: apply softmax to logits first")
    entropy = -torch.special.xlogy(p, p).sum(1).mean()
    marginal = p.mean(0)
    return float((-torch.special.xlogy(marginal, marginal).sum() - entropy).exp())


def _covered(points: Tensor, others: Tensor, k: int, chunk: int) -> float:
    """Share of `points` inside at least one ball around `others` that reaches to its k-th nearest neighbour."""
    radii = torch.cat(
        [
            _squared_distances(rows, others).scatter_(1, _own_columns(start, len(rows)), torch.inf).kthvalue(k, dim=1).values
            for start, rows in _chunks(others, chunk)
        ]
    )
    inside = sum(int((_squared_distances(rows, others) <= radii).any(1).sum()) for _, rows in _chunks(points, chunk))
    return inside / len(points)


def _chunks(rows: Tensor, size: int) -> list[tuple[int, Tensor]]:
    return [(start, rows[start : start + size]) for start in range(0, len(rows), size)]


def _own_columns(start: int, count: int) -> Tensor:
    return torch.arange(start, start + count)[:, None]


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[N, M] in float64; differences that are only rounding are 0, so that equal images lie in balls of radius 0 too."""
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    squared = norms - 2 * a @ b.T
    return torch.where(squared > 1e-13 * norms, squared, 0.0)


def _checked(features: Tensor) -> Tensor:
    if features.ndim != 2:
        raise InputError(f"features must be [N, D], not {list(features.shape)}: extract them first")
    features = features.detach().to("cpu", torch.float64)
    if not features.isfinite().all():
        raise InputError("the features hold NaN or infinity: look at the images they come from")
    return features


# --- pairs of images --------------------------------------------------------------------------------------------------


@torch.no_grad()
def psnr(made: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images [N, C, H, W] in [0, 1]: the mean of the images' own. Infinite when equal."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    made, reference = _pair(made, reference)
    return float(peak_signal_noise_ratio(made, reference, data_range=(0.0, 1.0), dim=(1, 2, 3), reduction="elementwise_mean"))


@torch.no_grad()
def ssim(made: Tensor, reference: Tensor) -> float:
    """Structural similarity of images [N, C, H, W] in [0, 1], mean over images; Gaussian window of 11 pixels. 1 is equal."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    made, reference = _pair(made, reference)
    if min(made.shape[-2:]) < 11:
        raise InputError(
            f"ssim looks through a window of 11 pixels: images of {made.shape[-2]} x {made.shape[-1]} are too small"
        )
    value: Any = structural_similarity_index_measure(made, reference, data_range=(0.0, 1.0))
    return float(value)


@torch.no_grad()
def lpips(made: Tensor, reference: Tensor, network: Literal["alex", "vgg", "squeeze"] = "alex") -> float:
    """LPIPS (1801.03924) of images [N, 1 or 3, H, W] in [0, 1], mean over images; 0 is equal.

    Its network's weights are fetched once by torchvision; raises InputError when that is not possible.
    """
    made, reference = _pair(made, reference)
    if min(made.shape[-2:]) < 32:
        raise InputError(f"lpips needs images of at least 32 x 32, not {made.shape[-2]} x {made.shape[-1]}: enlarge them first")
    metric = _lpips(network)
    metric.reset()
    for start in range(0, len(made), 16):
        pair = (images[start : start + 16].expand(-1, 3, -1, -1).float() for images in (made, reference))
        metric.update(*pair)
    return float(metric.compute())


@functools.cache
def _lpips(network: Literal["alex", "vgg", "squeeze"]) -> Any:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        return LearnedPerceptualImagePatchSimilarity(network, normalize=True)
    except Exception as error:  # no torchvision, no network, a broken download: each has its own exception
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"LPIPS needs the {network} weights that torchvision fetches, which failed ({reason}): go online once, or use ssim"
        ) from None


def _pair(made: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if made.shape != reference.shape or made.ndim != 4 or len(made) == 0:
        raise InputError(
            f"two stacks [N, C, H, W] of one size are compared, not {list(made.shape)} and {list(reference.shape)}"
        )
    for images in (made, reference):
        if not images.is_floating_point() or not images.isfinite().all() or images.min() < -1e-4 or images.max() > 1 + 1e-4:
            raise InputError("images must be floats in [0, 1] without NaN: divide uint8 by 255, clamp what a network made")
    return made.double().clamp(0, 1), reference.double().clamp(0, 1)  # variances of flat areas are lost in float32
