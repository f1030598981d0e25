import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from paperworks.data.seeds import uniforms
from paperworks.data.transforms import (
    Cutout,
    EraseWithNoise,
    NoisyRandAugment,
    eval_crop,
    eval_shift,
    extrapolated,
    imagenet_train,
    resize_shorter,
    to_float,
    train_crop,
    train_shift,
)
from paperworks.data.wobble import Chain
from paperworks.errors import InputError
from tests.data.making import picture


def batch(count: int = 6, side: int = 32, channels: int = 3) -> torch.Tensor:
    pictures = [torch.from_numpy(np.array(picture(number, (side, side)))).movedim(-1, 0) for number in range(count)]
    return torch.stack(pictures)[:, :channels].contiguous()


DRAWN = [
    train_crop(32),
    train_crop(24, flip=True, mode="bilinear"),
    eval_crop(20),
    train_shift(32, flip=True),
    train_shift(40, mode="reflect"),
    eval_shift(36),
]


@pytest.mark.parametrize("transform", DRAWN)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_its_images_one_by_one(transform, channels: int) -> None:
    images = batch(channels=channels)
    draws = uniforms(0, 0, range(6), transform.draws)
    whole = transform.apply(images, draws)
    assert whole.dtype == torch.uint8 and whole.shape == (6, channels, transform.size, transform.size) and whole.is_contiguous()
    for row in range(6):
        assert torch.equal(whole[row], transform.apply(images[row : row + 1], draws[row : row + 1])[0])
    assert torch.equal(images, batch(channels=channels))


def test_random_crop_is_a_window_of_the_resized_image() -> None:
    images = batch(2)
    resized = resize_shorter(images, 36)
    assert resized.shape == (2, 3, 36, 36)
    draws = torch.tensor([[0.0, 0.999], [0.5, 0.3]], dtype=torch.float64)
    cut = train_crop(32).apply(images, draws)
    assert torch.equal(cut[0], resized[0, :, 0:32, 4:36])
    assert torch.equal(cut[1], resized[1, :, 2:34, 1:33])


def test_every_position_and_both_mirrors_are_equally_likely() -> None:
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    transform = train_crop(8, margin=10 / 8, flip=True)
    transform.side = 8  # no resampling
    transform.size = 6
    cuts = transform.apply(image.expand(9000, -1, -1, -1), uniforms(1, 0, range(9000), 3))
    counts = torch.unique(cuts[:, 0, 0, [0, -1]], dim=0, return_counts=True)[1]
    assert len(counts) == 18 and (counts - 500).abs().max() < 100


def test_mirror_reverses_the_columns() -> None:
    images = batch(1)
    centre = torch.tensor([[0.5, 0.5, 0.9]], dtype=torch.float64)
    mirrored = torch.tensor([[0.5, 0.5, 0.1]], dtype=torch.float64)
    transform = train_shift(32, flip=True)
    assert torch.equal(transform.apply(images, centre), images)
    assert torch.equal(transform.apply(images, mirrored), images.flip(-1))


def test_shift_pads_with_black_and_centres() -> None:
    digits = torch.full((1, 1, 28, 28), 200, dtype=torch.uint8)
    centred = eval_shift(32).apply(digits, torch.zeros(1, 0))
    assert centred.shape == (1, 1, 32, 32) and (centred[..., 2:30, 2:30] == 200).all() and centred.float().sum() == 200 * 784
    corner = train_shift(32).apply(digits, torch.tensor([[0.0, 0.0]], dtype=torch.float64))
    assert (corner[..., 4:, 4:] == 200).all() and (corner[..., :4, :] == 0).all()
    assert eval_shift(20).apply(digits, torch.zeros(1, 0)).shape == (1, 1, 20, 20)


def test_eval_crop_agrees_with_torchvision_on_pictures() -> None:
    pixels = torch.from_numpy(np.array(picture(1, (120, 90)))).movedim(-1, 0)
    ours = eval_crop(56, margin=8 / 7).apply(pixels[None], torch.zeros(1, 0))[0]
    theirs = v2.Compose([v2.Resize(64, interpolation=v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(56)])(pixels)
    assert torch.equal(ours, theirs)
    in_pil = Image.fromarray(pixels.movedim(0, -1).numpy()).resize((85, 64), Image.Resampling.BICUBIC)
    difference = (resize_shorter(pixels[None], 64)[0].int() - torch.from_numpy(np.array(in_pil)).movedim(-1, 0).int()).abs()
    assert difference.max() <= 1


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (17, 300), (8, 8)])
def test_any_size_becomes_the_size_asked_for(size: tuple[int, int]) -> None:
    pixels = torch.from_numpy(np.array(picture(0, size))).movedim(-1, 0)
    for transform in [*DRAWN[:3], train_shift(32), eval_shift(36)]:
        assert transform.apply(pixels[None], uniforms(0, 0, [5], transform.draws)).shape == (
            1,
            3,
            transform.size,
            transform.size,
        )


def test_within_a_torchvision_pipeline() -> None:
    pipeline = v2.Compose([train_crop(16, flip=True), v2.ToDtype(torch.float32, scale=True)])
    image = tv_tensors.Image(batch(1)[0])
    assert pipeline(image).shape == (3, 16, 16) and isinstance(pipeline(image), tv_tensors.Image)


def test_sizes_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="size=0"):
        train_crop(0)
    with pytest.raises(InputError, match=r"margin=0\.5"):
        eval_crop(8, margin=0.5)
    with pytest.raises(InputError, match="pad=-1"):
        train_shift(8, pad=-1)


def test_to_float() -> None:
    values = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert values.dtype == torch.float32 and torch.allclose(values, torch.tensor([0, 0.2, 1]))
    assert to_float(values) is values


def test_imagenet_pipeline() -> None:
    image = tv_tensors.Image(batch(1, 90)[0])
    torch.manual_seed(0)
    results = [imagenet_train(32)(image) for _ in range(20)]
    assert all(isinstance(r, tv_tensors.Image) and r.dtype == torch.uint8 and r.shape == (3, 32, 32) for r in results)
    assert len({r.numpy().tobytes() for r in results}) == 20
    plain = imagenet_train(32, magnitude=0, erase=0)
    assert len(plain.transforms) == 2


def test_rand_augment_varies_its_strength_and_often_does_nothing() -> None:
    augment = NoisyRandAugment(operations=2, magnitude=9, deviation=0.5)
    image = tv_tensors.Image(batch(1, 48)[0])
    torch.manual_seed(0)
    magnitudes, same = [], 0
    for _ in range(200):
        same += bool(torch.equal(augment(image), image))
        magnitudes.append(augment.magnitude)
    assert 200 / 4 <= same < 200 / 2  # a quarter, and the identity and operations without effect besides
    assert 80 < np.mean(magnitudes) <= 100 and 2 < np.std(magnitudes) < 9


def magnitudes_of(monkeypatch, **arguments) -> dict[str, set[float]]:
    """What torchvision is told to do, by operation."""
    told: dict[str, set[float]] = {}

    def note(self, image, transform_id, magnitude, interpolation, fill):
        told.setdefault(transform_id, set()).add(round(abs(magnitude), 4))
        return image

    monkeypatch.setattr(v2.RandAugment, "_apply_image_or_video_transform", note, raising=False)
    augment = NoisyRandAugment(operations=2, deviation=0.0, probability=1.0, **arguments)
    for _ in range(200):
        augment(tv_tensors.Image(torch.zeros(3, 48, 48, dtype=torch.uint8)))
    return told


@pytest.mark.parametrize(("magnitude", "share"), [(10, 1.0), (15, 1.5)])
def test_rand_augment_goes_on_linearly_beyond_its_scale(monkeypatch, magnitude: float, share: float) -> None:
    told = magnitudes_of(monkeypatch, magnitude=magnitude)
    assert len(told) == 14
    assert told["Rotate"] == {30 * share} and told["ShearX"] == {round(0.3 * share, 4)}
    assert max(told["TranslateY"]) == pytest.approx(48 * 150 / 331 * share, abs=1e-3)
    assert told["Color"] == ({0.9} if share == 1 else {0.9, 1.35})  # 1.9 and 2.35 of the colour, or 0.1 of it
    assert told["Posterize"] == {8 - 4 * share} and told["Solarize"] == {0}


def test_what_cannot_go_further_stays() -> None:
    assert extrapolated("Contrast", -0.9, 1.5) == -0.9 and extrapolated("Contrast", 0.9, 1.5) == pytest.approx(1.35)
    assert extrapolated("Posterize", 4.0, 3.0) == 1 and extrapolated("AutoContrast", 0.0, 3.0) == 0


def test_every_image_is_changed_where_the_probability_is_one() -> None:
    torch.manual_seed(0)
    pipeline = imagenet_train(32, magnitude=15.0, deviation=0.0, probability=1.0, erase=0.0)
    image = tv_tensors.Image(batch(1, 48)[0])
    for _ in range(60):
        made = pipeline(image)
        assert made.dtype == torch.uint8 and made.shape == (3, 32, 32)
    assert pipeline.transforms[2].probability == 1.0


def test_magnitudes_that_make_no_sense() -> None:
    with pytest.raises(InputError, match=r"RandAugment\(40"):
        NoisyRandAugment(magnitude=40)
    with pytest.raises(InputError, match=r"probability 1\.5"):
        NoisyRandAugment(probability=1.5)


def test_cutout_colours_a_square_that_may_lie_partly_outside() -> None:
    images = torch.full((2, 3, 8, 8), 200, dtype=torch.uint8)
    draws = torch.tensor([[0.5, 0.5], [0.0, 0.99]], dtype=torch.float64)
    cut = Cutout(4, (0.0, 0.2, 1.0)).apply(images, draws)
    expected = images.clone()
    for row, (rows, columns) in enumerate(((slice(2, 6), slice(2, 6)), (slice(0, 2), slice(5, 8)))):
        expected[row, :, rows, columns] = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1)
    assert torch.equal(cut, expected) and (images == 200).all()
    assert (Cutout(3).apply(images, draws)[0] == 128).sum() == 3 * 9
    with pytest.raises(InputError, match="removes nothing"):
        Cutout(0)


def test_cutout_after_a_shift_depends_on_its_own_image_alone() -> None:
    transform, images = Chain(train_shift(32, flip=True), Cutout(16)), batch()
    draws = uniforms(0, 0, range(6), transform.draws)
    whole = transform.apply(images, draws)
    for row in range(6):
        assert torch.equal(whole[row], transform.apply(images[row : row + 1], draws[row : row + 1])[0])


def test_erasing_puts_noise_into_one_rectangle() -> None:
    image = tv_tensors.Image(torch.zeros(3, 40, 50, dtype=torch.uint8))
    torch.manual_seed(0)
    shares = []
    for _ in range(200):
        erased = EraseWithNoise(1.0)(image) != 0
        rows, columns = erased.any(0).nonzero(as_tuple=True)
        box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        shares.append(float(box) / 2000)
        assert erased.any(0).sum() > 0.9 * box  # noise is hardly ever black in all channels
    assert min(shares) > 0.015 and max(shares) < 0.36 and (image == 0).all()
    assert sum(bool((EraseWithNoise(0.25)(image) != 0).any()) for _ in range(400)) in range(65, 140)
