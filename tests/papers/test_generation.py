"""What recipes of image generators share: data sets of tensors, parts on disk, numbers of samples."""

import pytest
import torch
from PIL import Image

from paperworks.data import ImageSource, Transformed, open_images
from paperworks.errors import InputError
from paperworks.objectives.perceptual import PyramidLoss
from paperworks.papers import _generation, _generation_report
from paperworks.papers._generation import (
    FramedImages,
    Mirrored,
    TensorSet,
    default_channels,
    framed,
    framed_at_random,
    framed_batches,
    framing,
    kept_tensors,
    labels_of,
    load_part,
    open_split,
    open_test,
    perceptual_loss,
    save_part,
    shows_photos,
    training_images,
)
from paperworks.papers._generation_report import (
    Judge,
    Seen,
    chosen_labels,
    evenly,
    headline,
    in_batches,
    mean_over_images,
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


def same(batches, whole: torch.Tensor) -> bool:
    return torch.equal(torch.cat(list(batches)), whole)


def test_images_framed_batch_by_batch_are_those_framed_at_once(tmp_path):
    for number in range(7):
        Image.new("RGB", (40 + number, 50), (30 * number, 10, 10)).save(tmp_path / f"{number}.png")
    for source in (open_split("digits", "train", channels=1).subset(range(9)), open_images(tmp_path, channels=3)):
        count = len(source)
        assert same(framed_batches(source, 32).split(4), framed(source, 32))
        copies = [Transformed(source, framing(source, 32, random=True), seed=seed) for seed in (3, 4)]
        images = FramedImages(*copies)
        assert same(images.split(4), torch.cat([framed_at_random(source, 32, seed) for seed in (3, 4)]))
        assert [len(batch) for batch in images.split(4)] == [4] * (2 * count // 4) + [2 * count % 4] * (2 * count % 4 > 0)
        assert len(images) == 2 * count and torch.equal(images.labels, labels_of(source).repeat(2))
        with_workers = FramedImages(*copies, workers=1)
        assert same(with_workers.split(4), torch.cat(list(images.split(4))))


def test_photos_are_mirrored_where_it_is_wanted(tmp_path):
    half = Image.new("RGB", (32, 32))
    half.paste((255, 255, 255), (0, 0, 16, 32))
    half.save(tmp_path / "half.png")
    source = open_images(tmp_path, channels=3)

    def left(images):
        return [
            bool(image["image"][0, 10, 8:12].float().mean() > image["image"][0, 10, 20:24].float().mean()) for image in images
        ]

    for size in (24, 32):  # cropped, and shifted on a margin
        assert all(left(training_images(source, size, 0, 40)))
        assert 8 < sum(left(training_images(source, size, 0, 40, flip=True))) < 32
    exact = training_images(source, 32, 0, 4, margin=1.0)
    assert exact.transform.pad == 2  # small pictures are not resized, whatever the margin
    assert training_images(source, 24, 0, 4, margin=1.0).transform.side == 24
    centre = framing(source, 24, random=False)
    (plain,), (turned,) = (list(FramedImages(Transformed(source, t, seed=0)).split(1)) for t in (centre, Mirrored(centre)))
    assert torch.equal(plain.flip(-1), turned) and not torch.equal(plain, turned)
    assert shows_photos("some/folder") and not shows_photos("mnist5k") and not shows_photos("digits")


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


def test_a_judge_that_sees_batches_says_the_same():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 2
    real, made, noise = (torch.rand(100, 1, 8, 8, generator=generator) for _ in range(3))
    judge = Judge(Mean(), "mean brightness", 1000, True)
    whole = sample_numbers(judge, real, labels, made, labels, untrained=noise, rebuilt=made)
    parts = {}
    for name, images in (("real", real), ("made", made), ("noise", noise)):
        parts[name] = Seen(judge)
        for rows in torch.arange(100).split(30):
            parts[name].add(images[rows], labels[rows])
    split = sample_numbers(judge, parts["real"], labels, parts["made"], labels, untrained=parts["noise"], rebuilt=parts["made"])
    assert list(split) == list(whole) and split.pop("judged by") == whole.pop("judged by")
    assert split == pytest.approx(whole, rel=1e-5)
    assert mean_over_images([(1, {"a": 1.0}), (3, {"a": 5.0})]) == {"a": 4.0}


def test_how_many_images_are_judged_follows_the_configuration(monkeypatch, tmp_path):
    monkeypatch.setattr(_generation_report, "digit_classifier", lambda folder: Mean())
    monkeypatch.setattr(_generation_report, "lite0", Mean)
    assert [Judge.of("default", tmp_path, wanted).limit for wanted in (0, 20, 3000)] == [1000, 1000, 3000]
    assert [Judge.of("photos", tmp_path, wanted).limit for wanted in (0, 20, 50_000)] == [200, 200, 50_000]
    source = open_split("digits", "train", channels=1)
    assert len(evenly(source, 17)) == 17 and evenly(source, 10**6) is source
    assert len(set(evenly(source, 200).labels.tolist())) == 10


def test_perceptual_losses_by_name(monkeypatch):
    monkeypatch.setattr(_generation, "LPIPSLoss", lambda: PyramidLoss(1))
    monkeypatch.setattr(_generation, "LogitPerceptual", lambda: PyramidLoss(2))
    images = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    one, other, both = (perceptual_loss(name)(*images) for name in ("lpips", "convnext", "lpips_convnext"))
    assert both == pytest.approx(float(one + 0.1 * other)) and perceptual_loss("none") is None


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


@pytest.mark.parametrize(("side", "black"), [(32, False), (28, True)])
def test_pictures_that_fill_the_frame_are_shifted_without_black_edges(side, black):
    images = torch.randint(100, 256, (20, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = ImageSource.from_tensor(images, name="bright")
    data = Transformed(source, framing(source, 32, random=True), seed=0)
    lowest = min(int(data[index]["image"].min()) for index in range(20))
    assert (lowest == 0) == black
