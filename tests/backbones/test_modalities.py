import pytest
import torch

from paperworks.backbones.modalities import (
    PointHead,
    PointProjection,
    fold_series,
    log_mel,
    mel_filters,
    mosaic,
    rotations,
    viewed,
)
from paperworks.errors import InputError


def test_frames_become_tiles_row_by_row():
    video = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 2, 3)
    image = mosaic(video)
    assert image.shape == (1, 1, 4, 6)
    assert image[0, 0, 0].tolist() == [0, 0, 0, 1, 1, 1] and image[0, 0, 2].tolist() == [2, 2, 2, 3, 3, 3]
    with pytest.raises(InputError, match="5 frames"):
        mosaic(torch.zeros(1, 3, 5, 4, 4))


def test_a_tone_lights_its_mel_band():
    rate, pitch = 8000, 1000.0
    wave = torch.sin(2 * torch.pi * pitch * torch.arange(rate) / rate)[None]
    energies = log_mel(wave, rate, bands=40)
    filters = mel_filters(40, 256, rate)
    assert energies.shape == (1, 98, 40)
    assert int(energies[0].mean(0).argmax()) == int(filters[:, round(pitch * 256 / rate)].argmax())
    with pytest.raises(InputError, match="at least 200 samples"):
        log_mel(torch.zeros(1, 100), rate)


def test_series_need_a_square():
    with pytest.raises(InputError, match="no square"):
        fold_series(torch.zeros(1, 5, 3))


def test_clouds_become_pictures_of_their_views():
    torch.manual_seed(0)
    turns = rotations(3)
    assert torch.allclose(turns @ turns.transpose(1, 2), torch.eye(3).expand(3, 3, 3), atol=1e-6)
    points = torch.rand(2, 40, 3)
    project = PointProjection(4, 4, 8, 8, 32, 32).eval()
    images = project(points.repeat_interleave(3, 0), viewed(points, turns))
    assert images.shape == (6, 3, 32, 32) and bool(torch.isfinite(images).all())
    assert PointHead(12, 5, 3).eval()(torch.rand(6, 4, 2, 2)).shape == (2, 5)


def test_broken_clouds_are_named():
    project = PointProjection(4, 4, 8, 8, 32, 32)
    for cloud, words in (
        (torch.zeros(1, 40, 3), "no extent"),
        (torch.full((1, 40, 3), torch.nan), "not finite"),
        (torch.rand(1, 3, 3), "has no 4 neighbours"),
        (torch.rand(1, 40, 2), "not \\[1, 40, 2\\]"),
    ):
        with pytest.raises(InputError, match=words):
            project(cloud, cloud)
