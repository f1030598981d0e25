"""Recordings as files of one second, the twelve classes of Speech Commands, and a run on them."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from paperworks.data import Loader
from paperworks.data.decode import Unreadable
from paperworks.data.file_bytes import Changes, encode_wave
from paperworks.errors import InputError
from paperworks.paper import Recipe, Run
from paperworks.papers._byteformer_speech import COMMANDS, RATE, TRAINING_FILES, decode_wave, one_second, open_recordings
from paperworks.papers._classification import AugmentConfig
from paperworks.papers.byteformer import paper
from paperworks.training import TrainConfig


def tone(number: int, length: int = RATE) -> torch.Tensor:
    return 0.5 * torch.sin(torch.arange(length) * (0.02 + 0.01 * number))


def write(path: Path, wave: torch.Tensor, rate: int = RATE, samples: str = "int16") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_wave(wave, rate, samples))


@pytest.fixture
def commands(tmp_path) -> Path:
    """As Speech Commands is distributed: ten recordings of each of ten words and two others, lists, and a background."""
    root = tmp_path / "commands"
    words = (*COMMANDS, "bird", "tree")
    for index, word in enumerate(words):
        for number in range(10):
            write(root / word / f"{number}_nohash_0.wav", tone(index, RATE if number else RATE // 2))
    write(root / "_background_noise_" / "hum.wav", tone(40, 3 * RATE))
    (root / "_background_noise_" / "README.md").write_text("about the hum")
    for name, numbers in (("validation", (8,)), ("testing", (0, 9))):
        (root / f"{name}_list.txt").write_text("\n".join(f"{word}/{n}_nohash_0.wav" for word in words for n in numbers) + "\n")
    return root


@pytest.fixture
def folder(tmp_path) -> Path:
    """WAV files in class folders; two of them cannot be used."""
    for number in range(20):
        for index, name in enumerate(("low", "high")):
            write(tmp_path / "tones" / name / f"{number}.wav", tone(10 * index, RATE - number))
    (tmp_path / "tones" / "low" / "broken.wav").write_bytes(b"RIFF of nothing")
    write(tmp_path / "tones" / "high" / "slow.wav", tone(1, 8000), rate=8000)
    return tmp_path / "tones"


@pytest.mark.parametrize("samples", ["float32", "int32", "int16", "uint8"])
def test_waveforms_come_back(samples):
    wave = tone(3, 1000)
    assert torch.allclose(decode_wave(encode_wave(wave, RATE, samples)), wave, atol=0.01 if samples == "uint8" else 1e-4)


def test_channels_are_averaged_and_lengths_made_equal():
    file = io.BytesIO()
    wavfile.write(file, RATE, np.array([[0.5, -0.1], [0.25, 0.25]], dtype=np.float32))
    wave = decode_wave(file.getvalue())
    assert wave.tolist() == pytest.approx([0.2, 0.25])
    assert one_second(wave).shape == one_second(tone(1, 20_000)).shape == (RATE,) and not one_second(wave)[2:].any()


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"", "is not a WAV file"),
        (b"\x89PNG\r\n\x1a\n", "is not a WAV file"),
        (encode_wave(tone(0, 100), RATE)[:40], "is not a WAV file"),
        (encode_wave(tone(0, 100), 8000), "has 8000 samples a second; resample it to 16000"),
    ],
)
def test_what_is_no_recording(file, reason):
    with pytest.raises(Unreadable, match=reason):
        decode_wave(file)


def test_a_folder_of_recordings(folder):
    files = open_recordings(folder, labels="required")
    assert len(files) == 40 and files.classes == ["high", "low"]
    reasons = dict(files.skipped)
    assert "resample" in reasons["high/slow.wav"] and "not a WAV" in reasons["low/broken.wav"]
    batch = files.batch([0, 39])
    assert batch["bytes"].shape == (2, len(encode_wave(torch.zeros(RATE), RATE, "float32")))
    assert "target" not in batch and batch["label"].tolist() == [0, 1] and not bool((batch["bytes"] < 0).any())
    assert bytes(files[3]["bytes"].tolist()) == encode_wave(files.wave(3), RATE, "float32")
    train, test = (open_recordings(folder, split=split, labels="required") for split in ("train", "test"))
    assert len(train) + len(test) == 40 and not set(train.keys) & set(test.keys)


def test_in_training_recordings_are_moved_and_mixed(folder):
    files = open_recordings(folder, "int16", labels="required", seed=4)
    moved = files.augmented(AugmentConfig("shift", mixup=0.0, smoothing=0.1))
    wave = decode_wave(bytes(moved.file(0).tolist()))
    shifts = range(-RATE // 10, RATE // 10)
    assert any(torch.allclose(wave, files.wave(0).roll(shift), atol=1e-3) for shift in shifts)
    assert torch.allclose(moved.batch([0])["target"], torch.tensor([[0.95, 0.05]]))

    mixed = files.augmented(AugmentConfig("shift", mixup=1.0, smoothing=0.0))
    first, again = (next(iter(Loader(mixed, 8, seed=0))) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.allclose(first["target"].sum(1), torch.ones(8)) and bool((first["target"].amax(1) < 1).any())
    before = mixed.file(5)
    mixed.set_epoch(1)
    assert not torch.equal(mixed.file(5), before) and files.augment is None
    part = mixed.subset(torch.tensor([5, 6]))
    assert part.batch([0])["target"].shape == (1, 2)


def test_speech_commands_give_twelve_classes(commands):
    train, test, everything = (open_recordings(commands, split=split, labels="required") for split in ("train", "test", "all"))
    # 7, 2 and 10 recordings of each command, and a tenth as many of other words and of silence
    assert [len(files) for files in (train, test, everything)] == [70 + 7 + 7, 20 + 2 + 2, 100 + 10 + 10]
    assert test.classes == sorted((*COMMANDS, "_unknown_", "_silence_"))
    assert test.labels.bincount().tolist() == [2] * 12 and not set(train.keys) & set(test.keys)
    names = {test.classes[int(label)]: key for key, label in zip(test.keys, test.labels)}
    assert names["go"] == "go/9_nohash_0.wav" and names["_unknown_"].split("/")[0] in ("bird", "tree")
    assert names["_silence_"].startswith("_silence_/testing") and not test.skipped
    quiet = test.wave(test.keys.index(names["_silence_"]))
    hum = tone(40, 3 * RATE).unfold(0, 64, 1)
    assert float((hum - quiet[:64]).abs().amax(1).min()) < 1e-3
    assert len(train.background) == 1 and len(train.background[0]) == 3 * RATE


def test_the_published_setting():
    config = paper.recipes["speech"](data="somewhere", samples="int16").config
    training = config.training
    assert (training.steps, training.batch_size) == (round(300 * TRAINING_FILES / 384), 384)
    assert training.optimizers["main"].schedule.warmup == 500 and config.network.arguments == {"max_tokens": 50_000}
    images = paper.recipes["paper"]().config.training
    assert images.optimizers["main"].lr == training.optimizers["main"].lr and images.ema == training.ema
    assert (config.format, config.samples, config.augment.mixup) == ("wav", "int16", 1.0)
    with pytest.raises(InputError, match="no variant"):
        paper.recipes["speech"](data="somewhere", variant="byteformer")
    with pytest.raises(InputError, match="of wav the header's too"):
        open_recordings("somewhere", changes=Changes(keep=0.5))


def test_a_run_on_recordings(folder, tmp_path):
    recipe = paper.recipes["speech"](data=str(folder), samples="uint8")
    sizes = {"width": 16, "depth": 2, "heads": 2, "window": 32, "kernel": 128, "max_tokens": 0}
    training = TrainConfig(4, 8, ema=0.9, eval_every=2, checkpoint_every=2)
    network = replace(recipe.config.network, arguments=sizes)
    recipe = Recipe(replace(recipe.config, network=network, training=training, watch=3), recipe.stages)
    run = Run.open(tmp_path / "run", slug="byteformer", recipe="speech", arguments={}, config=recipe.config, command="")
    run.execute(recipe, say=lambda _: None)
    assert run.result("pixels") == {} and run.result("train")["longest"] == len(encode_wave(torch.zeros(RATE), RATE, "uint8"))
    page = (run.folder / "report.html").read_text()
    assert "WAV files" in page and "slow.wav" in page and "how often each byte occurs" in page
    rows = paper.verbs["predict"](run, str(folder / "high"), top=2)
    assert len(rows) == 21 and rows[-1]["1."].startswith("not used: has 8000 samples")
    assert paper.verbs["evaluate"](run)["files"] == run.result("evaluate")["files"]
