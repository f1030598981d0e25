from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from paperworks.analysis.features import Lite0, extract, lite0
from paperworks.data import open_images
from paperworks.errors import InputError


@pytest.fixture(scope="module")
def network() -> Lite0:
    return lite0()


def one(photo: str) -> Tensor:
    photos = open_images("photos", split="all")
    index = next(index for index in range(len(photos)) if photos.key(index) == photo)
    return photos.read(index)[None].float() / 255


@pytest.mark.parametrize(
    ("photo", "name"), [("coffee", "espresso"), ("flower", "daisy"), ("rocket", "missile"), ("chelsea", "tiger cat")]
)
def test_photos_are_recognised(network: Lite0, photo: str, name: str) -> None:
    logits = network.logits(one(photo))
    assert logits.shape == (1, 1000)
    assert name in network.class_names[int(logits.argmax())]


@pytest.mark.slow
def test_accuracy_on_imagenet_photos(network: Lite0, shared: Path) -> None:
    path = shared / "data/imagenet-samples/all.parquet"
    if not path.is_file():
        pytest.skip(f"no ImageNet photos: {path} is absent")
    photos = open_images(path, split="all")
    indices = range(0, len(photos), max(1, len(photos) // 100))
    with torch.inference_mode():
        top = [network.logits(photos[i]["image"].as_subclass(Tensor)[None].float() / 255).topk(5).indices[0] for i in indices]
    hits = [[int(photos[i]["label"]) == guess for guess in guesses.tolist()] for i, guesses in zip(indices, top)]
    assert sum(row[0] for row in hits) / len(hits) > 0.8
    assert sum(any(row) for row in hits) / len(hits) > 0.95


def test_features_lead_to_logits(network: Lite0) -> None:
    photo = one("coffee")
    features = network.features(photo)
    assert features.shape == (1, 1280)
    torch.testing.assert_close(network.network.classifier(features), network.logits(photo))
    torch.testing.assert_close(network(photo), features)


def test_grey_images_count_as_three_equal_channels(network: Lite0) -> None:
    grey = torch.rand(2, 1, 40, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network.features(grey), network.features(grey.repeat(1, 3, 1, 1)))


def test_feature_maps_keep_the_resolution_and_pass_gradients(network: Lite0) -> None:
    images = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    maps = network.feature_maps(images)
    assert [tuple(each.shape[1:]) for each in maps] == [(16, 32, 16), (24, 16, 8), (40, 8, 4), (112, 4, 2), (320, 2, 1)]
    sum(each.square().mean() for each in maps).backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())


def test_stays_frozen_inside_something_that_trains(network: Lite0) -> None:
    holder = nn.ModuleList([network]).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.features(torch.rand(2, 3, 32, 32))
    assert holder.training and not any(each.training for each in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_what_is_not_an_image(network: Lite0) -> None:
    with pytest.raises(InputError, match="1 or 3"):
        network.features(torch.rand(2, 4, 32, 32))
    with pytest.raises(InputError, match="uint8"):
        network.logits(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_extract_takes_stacks_and_sources_in_order() -> None:
    def colour(images: Tensor) -> Tensor:
        return images.mean((2, 3))

    digits = open_images("digits", split="test")
    wanted = colour(digits.images.float() / 255)
    torch.testing.assert_close(extract(colour, digits, batch_size=7), wanted)
    torch.testing.assert_close(extract(colour, digits.images, batch_size=100), wanted)
    torch.testing.assert_close(extract(colour, digits.images.float() / 255), wanted)


def test_extract_takes_images_of_different_sizes() -> None:
    images = [torch.full((1, size, size), size / 10) for size in (2, 2, 3, 3, 2)]
    seen = []

    class Model(nn.Module):
        def features(self, images: Tensor) -> Tensor:
            seen.append(len(images))
            return images.mean((2, 3))

    found = extract(Model(), images)
    assert found.squeeze(1).tolist() == pytest.approx([0.2, 0.2, 0.3, 0.3, 0.2])
    assert seen == [2, 2, 1]


def test_extract_from_nothing() -> None:
    with pytest.raises(InputError, match="no images"):
        extract(lambda images: images, torch.zeros(0, 1, 2, 2))
    with pytest.raises(InputError, match="batch_size"):
        extract(lambda images: images, torch.zeros(1, 1, 2, 2), batch_size=0)
