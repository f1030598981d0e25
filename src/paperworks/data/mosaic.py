"""The high-cellularity mosaic (KimiaNet 2101.07903): a few tiles stand for a slide of thousands.

Tiles are grouped by colour; of every group those at the centres of its locations are taken, so that a mosaic covers what a
slide shows and where; of the mosaic the tiles with most nuclei are kept.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from paperworks.data.slides import Tiles
from paperworks.data.stains import cellularity
from paperworks.errors import InputError


@dataclass(frozen=True)
class MosaicConfig:
    clusters: int = 9
    """groups of colour; fewer on a slide with fewer tiles"""
    share: float = 0.15
    """of each group that is taken, one tile at least (the released search takes 0.05)"""
    keep: float = 0.2
    """of the mosaic that is kept, by the area of nuclei; 1 keeps all"""
    colour_size: int = 250
    """pixels of a tile's side on which colours are averaged: 1000 at 20x are 250 at 5x"""
    cell_size: int = 500
    """and on which nuclei are measured"""
    seed: int = 724
    """of the groups' first centres"""


@dataclass
class Mosaic:
    tiles: Tiles
    """of the mosaic, one after the other by group"""
    groups: Tensor
    """int64 [N]: the colour group of each"""
    cells: Tensor
    """float [N]: share of each tile that nuclei cover"""
    kept: Tensor
    """int64: positions of the tiles with most nuclei, the most first"""

    @property
    def best(self) -> Tiles:
        """The high-cellularity mosaic."""
        return self.tiles.subset(self.kept)


def make_mosaic(tiles: Tiles, config: MosaicConfig) -> Mosaic:
    """The mosaic of a slide's tiles with what it keeps."""
    chosen, groups = mosaic_of(tiles, config)
    mosaic = tiles.subset(chosen)
    cells = cellularity(mosaic.images(min(config.cell_size, tiles.size)))
    return Mosaic(mosaic, groups, cells, most_cells(cells, config.keep))


def mosaic_of(tiles: Tiles, config: MosaicConfig) -> tuple[Tensor, Tensor]:
    """(positions of the mosaic's tiles, their groups), both int64 [N]."""
    if config.clusters < 1 or not 0 < config.share <= 1 or not 0 < config.keep <= 1:
        raise InputError(f"no mosaic: {config}: at least one group, shares above 0 and up to 1")
    size = min(config.colour_size, tiles.size)
    colours = torch.stack([tiles.read(number, size).float().mean((1, 2)) for number in range(len(tiles))])
    return choose(colours / 255, tiles.corners, config)


def choose(colours: Tensor, places: Tensor, config: MosaicConfig) -> tuple[Tensor, Tensor]:
    """`mosaic_of` from the tiles' mean colours float [N, 3] and places [N, 2]."""
    labels, _ = _k_means(colours.numpy(), min(config.clusters, len(colours)), config.seed)
    chosen, groups = [], []
    for group in range(int(labels.max()) + 1):
        members = np.flatnonzero(labels == group)
        if not len(members):
            continue
        count = max(1, int(config.share * len(members)))
        where = places.numpy()[members].astype(np.float64)
        _, centres = _k_means(where, count, config.seed)
        far = np.linalg.norm(where[:, None] - centres[None], axis=2)
        taken: list[int] = []
        for column in range(count):  # centres may coincide where places do: each takes the nearest that is left
            taken.append(
                next(int(row) for row in np.argsort(far[:, min(column, far.shape[1] - 1)], kind="stable") if row not in taken)
            )
        chosen += members[taken].tolist()
        groups += [group] * count
    return torch.tensor(chosen), torch.tensor(groups)


def most_cells(cells: Tensor, keep: float) -> Tensor:
    """Positions of the share `keep` of tiles with most nuclei, one at least, the most first."""
    return cells.sort(descending=True, stable=True).indices[: max(1, round(keep * len(cells)))]


def _k_means(points: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than groups: groups stay empty
        found = KMeans(count, n_init=1, random_state=seed).fit(points)
    return found.labels_, found.cluster_centers_
