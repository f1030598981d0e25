from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from paperworks.analysis.digits import DigitClassifier, _moved, _network, digit_classifier
from paperworks.data import open_images
from paperworks.errors import InputError


def test_sizes_and_channels_that_mean_the_same_digit() -> None:
    classifier = DigitClassifier(_network())
    digits = open_images("mnist5k", split="test").images[:4].float() / 255
    features = classifier.features(digits)
    assert features.shape == (4, 128) and classifier.logits(digits).shape == (4, 10)
    torch.testing.assert_close(classifier.features(F.pad(digits, (2, 2, 2, 2))), features)
    torch.testing.assert_close(classifier.features(digits.repeat(1, 3, 1, 1)), features)
    assert classifier.features(F.interpolate(digits, (64, 64))).shape == (4, 128)
    with pytest.raises(InputError, match="1 or 3"):
        classifier.features(digits.repeat(1, 2, 1, 1))


def test_augmentation_moves_digits_a_little_and_follows_the_generator() -> None:
    digits = F.pad(open_images("mnist5k", split="test").images[:32].float() / 255, (2, 2, 2, 2))
    one, again, other = (_moved({"image": digits}, torch.Generator().manual_seed(seed))["image"] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    ink = one.sum((1, 2, 3)) / digits.sum((1, 2, 3))
    assert ink.min() > 0.75 and ink.max() < 1.3  # sized by at most 10 % a side, nothing pushed out

    def centre(images: torch.Tensor) -> torch.Tensor:
        return (images.sum((1, 2)) * torch.arange(32)).sum(1) / images.sum((1, 2, 3))

    shift = (centre(one) - centre(digits)).abs()
    assert 0.3 < shift.mean() < 2 and shift.max() < 4


@pytest.mark.slow
def test_trained_classifier_and_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state()
    classifier = digit_classifier(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    test = open_images("mnist5k", split="test")
    logits = classifier.logits(test.images.float() / 255)
    assert (logits.argmax(1) == test.labels).float().mean() > 0.97
    capsys.readouterr()
    again = digit_classifier(tmp_path)
    assert torch.equal(again.logits(test.images.float() / 255), logits)
    with pytest.raises(InputError):
        digit_classifier(tmp_path, seed=1)
