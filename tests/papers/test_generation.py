"""What recipes of image generators share: data sets of tensors, parts on disk, numbers of samples."""

import pytest
import torch
from PIL import Image

from paperworks.errors import InputError
from paperworks.papers._generation import (
    TensorSet,
    default_channels,
    framed,
    kept_tensors,
    labels_of,
    load_part,
    open_split,
    open_test,
    save_part,
    training_images,
)
from paperworks.papers._generation_report import (
    Judge,
    chosen_labels,
    headline,
    in_batches,
    sample_numbers,
    spread_over,
)
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQVAE
from paperworks.tokenizers.protocol import reconstruct


def small() -> MultiScaleVQVAE:
    return MultiScaleVQVAE(8, 4, 8, (1, 1), 1, (1, 2, 4), groups=4, in_channels=1)


def test_digits_are_grey_and_folders_are_in_colour():
    assert default_channels("default") == 1 and default_channels("some/folder") == 3


def test_a_flat_folder_is_one_class_and_its_few_images_fill_a_batch(tmp_path):
    for number in range(3):
        Image.new("RGB", (40, 50), (60 * number, 10, 10)).save(tmp_path / f"{number}.png")
    source = open_split(str(tmp_path), "train", channels=3)
    assert labels_of(source).unique().tolist() == [0]
    assert framed(source, 32).shape == (len(source), 3, 32, 32)
    assert len(training_images(source, 32, 0, batch_size=8)) == 8
    assert len(open_test(str(tmp_path), channels=3)) >= 1


def test_tensor_set_takes_rows_together_and_repeats_itself():
    data = TensorSet(tokens=torch.arange(6).view(3, 2), label=torch.tensor([5, 6, 7]))
    assert data[1]["tokens"].tolist() == [2, 3] and data.batch([2, 0])["label"].tolist() == [7, 5]
    assert data.at_least(3) is data
    more = data.at_least(7)
    assert len(more) == 9 and more[4]["label"] == 6
    with pytest.raises(InputError, match="unequal length"):
        TensorSet(a=torch.zeros(2), b=torch.zeros(3))


def test_tensors_are_made_once(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"x": torch.arange(4)}

    first, again = (kept_tensors(tmp_path / "x.safetensors", make) for _ in range(2))
    assert len(calls) == 1 and torch.equal(first.columns["x"], again.columns["x"])


def test_a_part_comes_back_as_it_was_and_its_absence_is_explained(tmp_path):
    torch.manual_seed(0)
    tokenizer = small().eval()
    save_part(tokenizer, tmp_path / "tokenizer")
    again = load_part(MultiScaleVQVAE, tmp_path / "tokenizer")
    images = torch.rand(2, 1, 8, 8)
    assert all(torch.equal(a, b) for a, b in zip(tokenizer.encode(images), again.encode(images)))
    with pytest.raises(InputError, match="no trained transformer yet"):
        load_part(MultiScaleVQVAE, tmp_path / "transformer")


def test_classes_by_name():
    assert chosen_labels(["cat", "dog"], ["dog"]).tolist() == [1]
    assert chosen_labels(["cat", "dog"], []).tolist() == [0, 1]
    with pytest.raises(InputError, match=r"no class 'dgo'.*dog"):
        chosen_labels(["cat", "dog"], ["dgo"])


class Mean(torch.nn.Module):
    def features(self, images):
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)

    def logits(self, images):
        return torch.stack([1 - images.mean((1, 2, 3)), images.mean((1, 2, 3))], 1)

    def forward(self, images):
        return self.features(images)


def test_numbers_tell_good_samples_from_bad_ones():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    bright = labels.view(-1, 1, 1, 1) * 0.6
    real, made = (bright + 0.3 * torch.rand(200, 1, 8, 8, generator=generator) for _ in range(2))
    judge = Judge(Mean(), "mean brightness", 1000, True)
    noise = torch.rand(200, 1, 8, 8, generator=generator)
    numbers = sample_numbers(judge, real, labels, made, labels, untrained=noise)
    assert numbers["Frechet distance of samples"] < 0.1 * numbers["Frechet distance before training"]
    assert numbers["samples recognised as their class"] == 1
    assert headline(numbers)["recognised"] == "100%"


def test_reconstruction_counts_every_code_and_batches_change_nothing():
    torch.manual_seed(0)
    tokenizer, images = small().eval(), torch.rand(5, 1, 8, 8)
    made, usage = reconstruct(tokenizer, images, batch_size=2)
    assert torch.allclose(made, reconstruct(tokenizer, images)[0], atol=1e-5)
    assert int(usage.counts.sum()) == 5 * (1 + 4 + 16)
    assert in_batches(lambda labels, first: labels + first, torch.zeros(5, dtype=torch.int64), 2).tolist() == [0, 0, 2, 2, 4]


def test_some_images_from_everywhere():
    source = open_split("digits", "train", channels=1)
    assert 10 <= len(spread_over(source, 12)) <= 12
