"""What a stained section shows: optical density, where there is tissue, how much of each stain, how many cell nuclei.

Light falls off exponentially with the amount of stain (Beer and Lambert), so amounts are linear in the optical density -ln I.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.data.transforms import Drawn
from paperworks.errors import InputError

STAINS = {"haematoxylin": (0.65, 0.70, 0.29), "eosin": (0.07, 0.99, 0.11), "dab": (0.27, 0.57, 0.78)}
"""directions of the stains' optical density in RGB (Ruifrok and Johnston, 2001)"""

Stain = Literal["any", "he"]
"""which colours count as tissue: any, or those of haematoxylin and eosin alone (the released search; a brown DAB is none)"""

GREY, COLOURED, WINDOW, THUMBNAIL = 5.0, 0.05, 30, 500
"""of the released tissue mask: deviation over RGB and mean of the colour over a window below which there is none; the window's
side on a thumbnail whose longer side has 500 pixels"""
LEAST_STAIN = 0.15
"""amount of haematoxylin below which nothing is a nucleus, however pale the slide"""


def optical_density(images: Tensor) -> Tensor:
    """uint8 [..., 3, H, W] -> float, 0 for clear glass."""
    if images.dtype != torch.uint8 or images.ndim < 3 or images.shape[-3] != 3:
        raise InputError(f"stains are measured on RGB images uint8 [..., 3, H, W], not {images.dtype} {list(images.shape)}")
    return _DENSITY[images.long()]


_DENSITY = -((torch.arange(256).float().clamp(min=1)) / 255).log()


def unmix(images: Tensor) -> Tensor:
    """uint8 [..., 3, H, W] -> amounts of haematoxylin, eosin and DAB in the place of RGB (colour deconvolution)."""
    directions = F.normalize(torch.tensor(list(STAINS.values())), dim=1)
    return torch.einsum("...chw,cs->...shw", optical_density(images), torch.linalg.inv(directions))


def hue_saturation_density(images: Tensor) -> Tensor:
    """uint8 [..., 3, H, W] -> density D and the two coordinates of the colour, which do not change with the amount of stain:
    cx = D_red / D - 1, cy = (D_green - D_blue) / (sqrt(3) D) (van der Laak and others, 2000)."""
    density = optical_density(images)
    red, green, blue = density.unbind(-3)
    mean = density.mean(-3)
    safe = mean.clamp(min=1e-6)
    cx = torch.where(mean > 0, red / safe - 1, 0.0)
    return torch.stack([mean, cx, (green - blue) / (3**0.5 * safe)], -3)


def tissue_mask(thumbnail: Tensor, stain: Stain = "any") -> Tensor:
    """bool [H, W]: where a thumbnail uint8 [3, H, W] shows tissue. Grey pixels are glass, dirt or pen, pale areas too."""
    from scipy.ndimage import uniform_filter

    if stain not in ("any", "he"):
        raise InputError(f"stain {stain!r}: there are 'any' and 'he'")
    grey = torch.from_numpy(thumbnail.numpy().astype(np.float32).std(0) < GREY)
    colour = torch.where(grey, 0.0, hue_saturation_density(thumbnail)[1:])
    window = max(1, round(WINDOW * max(thumbnail.shape[1:]) / THUMBNAIL))
    cx, cy = (uniform_filter(plane.numpy(), window, mode="mirror") for plane in colour)
    strength = cy if stain == "he" else np.hypot(cx, cy)
    return ~grey & torch.from_numpy(strength >= COLOURED)


def nuclei_threshold(images: Tensor) -> float:
    """The amount of haematoxylin that parts nuclei from the rest, by Otsu's rule over all of a slide's tiles together: within a
    slide one threshold, between slides another, since some are stained paler than others."""
    from skimage.filters import threshold_otsu

    amounts = unmix(images)[..., 0, :, :].clamp(min=0).numpy()
    if float(amounts.max() - amounts.min()) < 1e-3:
        return LEAST_STAIN
    return max(LEAST_STAIN, float(threshold_otsu(amounts)))


def cellularity(images: Tensor, threshold: float | None = None) -> Tensor:
    """Share of each tile's area that nuclei cover, float [N], of uint8 [N, 3, H, W] of one slide."""
    if images.ndim != 4:
        raise InputError(f"cellularity is measured on tiles [N, 3, H, W], not {list(images.shape)}")
    least = nuclei_threshold(images) if threshold is None else threshold
    return (unmix(images)[:, 0] > least).float().mean((1, 2))


class Restained(Drawn):
    """`moved`, then other amounts of stain: the optical density of each colour times up to 1 + `change`, or divided by it."""

    def __init__(self, moved: Drawn, change: float):
        if change < 0:
            raise InputError(f"stains change by a factor of 1 + {change}: give 0 or more")
        self.moved, self.change = moved, change
        self.draws = moved.draws + 3

    def apply(self, images: Tensor, uniforms: Tensor) -> Tensor:
        images = self.moved.apply(images, uniforms[:, : self.moved.draws])
        factors = (1 + self.change) ** (2 * uniforms[:, self.moved.draws :].float() - 1)
        light = (images.float() / 255) ** factors.view(-1, 3, 1, 1)
        return (255 * light).round_().to(torch.uint8)
