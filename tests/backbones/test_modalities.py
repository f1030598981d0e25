import pytest
import torch

from paperworks.backbones.modalities import (
    PointHead,
    PointProjection,
    audio_image,
    fold_series,
    log_mel,
    masked,
    mel_filters,
    mosaic,
    rotations,
    standardised,
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


def test_a_view_along_a_line_of_points_is_refused():
    project = PointProjection(4, 4, 8, 8, 32, 32)
    line = torch.zeros(1, 40, 3)
    line[0, :, 2] = torch.linspace(-1, 1, 40)
    with pytest.raises(InputError, match="one line of sight"):
        project(line, viewed(line, rotations(1)))
    along_x = line.flip(-1)
    assert bool(torch.isfinite(project(along_x, viewed(along_x, rotations(1)))).all())


def test_objects_fit_into_their_image():
    for obj_size in (3, 33):
        with pytest.raises(InputError, match=f"obj_size {obj_size}: .* at most the image's 32"):
            PointProjection(4, 4, 8, 8, 32, obj_size)
    with pytest.raises(InputError, match="atten_fusion"):
        PointProjection(atten_fusion=True)
    cloud = torch.rand(1, 40, 3)
    assert bool(torch.isfinite(PointProjection(4, 4, 8, 8, 4, 4)(cloud, cloud)).all())


def test_pictures_of_clouds_are_normalised_as_asked():
    torch.manual_seed(0)
    project, cloud = PointProjection(4, 4, 8, 8, 16, 16, mean=(0, 0, 0), std=(1, 1, 1)).eval(), torch.rand(1, 40, 3)
    with torch.no_grad():
        plain = project(cloud, cloud)
        assert float(plain.min()) >= 0 and float(plain.max()) <= 1
        project.mean.fill_(0.5)
        assert torch.allclose(project(cloud, cloud), plain - 0.5)


def test_energies_are_those_of_kaldi():
    torch.manual_seed(0)
    rate, wave = 8000, 0.1 * torch.randn(1, 400)
    frame = wave[0, :200] - wave[0, :200].mean()
    emphasised = torch.stack([frame[i] - 0.97 * frame[max(0, i - 1)] for i in range(200)])
    hann = 0.5 - 0.5 * torch.cos(2 * torch.pi * torch.arange(200) / 199)
    spectrum = torch.fft.rfft(emphasised * hann, 256).abs() ** 2
    energies = (mel_filters(23, 256, rate) @ spectrum).clamp(min=torch.finfo(torch.float32).eps).log()
    assert torch.allclose(log_mel(wave, rate, bands=23)[0, 0], energies, atol=1e-3)
    assert not torch.allclose(log_mel(wave, rate, bands=23, preemphasis=0.0)[0, 0], energies, atol=0.1)


def test_energies_are_standardised_and_masked():
    energies = torch.full((64, 100, 128), -6.845978)
    assert float(standardised(energies).abs().max()) == 0.0
    assert float(standardised(energies + 5.5654526).mean()) == pytest.approx(0.5)
    hidden = masked(energies, torch.Generator().manual_seed(0)) == 0
    rows, columns = hidden.all(2).sum(1), hidden.all(1).sum(1)
    assert int(rows.max()) <= 48 and int(columns.max()) <= 48 and rows.float().std() > 5 and columns.float().std() > 5
    # one run of each: hidden parts are exactly the rows and columns that are hidden as a whole
    assert torch.equal(hidden, hidden.all(2, keepdim=True) | hidden.all(1, keepdim=True))
    steps = hidden.all(2).int().diff(dim=1).abs().sum(1)
    assert int(steps.max()) <= 2
    assert torch.equal(masked(energies, torch.Generator(), frequency=0, time=0), energies)


def test_the_number_of_mel_bands_is_checked():
    assert audio_image(torch.zeros(2, 10, 128), bands=128).shape == (2, 1, 128, 10)
    with pytest.raises(InputError, match="64 mel bands, not 128"):
        audio_image(torch.zeros(2, 10, 64), bands=128)
