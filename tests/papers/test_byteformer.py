"""ByteFormer: small runs on images and on any files, predictions on a user's files, claims that are counted."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from paperworks.backbones.byteformer import ByteFormer
from paperworks.data import ImageSource, open_images
from paperworks.data.file_bytes import Changes, as_numbers, encode_image, pad
from paperworks.errors import InputError
from paperworks.paper import Bench, Recipe, Run, verdict
from paperworks.papers import _byteformer_claims as measure
from paperworks.papers._byteformer_files import FilesConfig, files_of, lengths, written
from paperworks.papers._byteformer_recipe import Trained
from paperworks.papers._recognition_claims import Budget
from paperworks.papers.byteformer import paper
from paperworks.training import TrainConfig
from tests.backbones.test_byteformer import Renamed

SIZES = {"width": 16, "depth": 2, "heads": 2, "window": 32, "kernel": 16, "max_tokens": 0}


def tiny(recipe: str, **arguments) -> FilesConfig:
    config = paper.recipes[recipe](**arguments).config
    training = TrainConfig(4, 8, ema=0.9, eval_every=2, checkpoint_every=2)
    return replace(config, network=replace(config.network, arguments=SIZES), training=training, watch=20)


def carry_out(folder: Path, config: FilesConfig, recipe: str = "laptop") -> Run:
    run = Run.open(folder, slug="byteformer", recipe=recipe, arguments={}, config=config, command="paperworks run byteformer")
    run.execute(Recipe(config, paper.recipes["laptop"]().stages), say=lambda _: None)
    return run


@pytest.mark.parametrize(("format", "keep"), [("tiff", 1.0), ("jpeg", 1.0), ("fhwc", 0.1)])
def test_images_run_as_files_and_predict(format, keep, jpeg_folder, tmp_path):
    run = carry_out(tmp_path / "run", tiny("laptop", data=str(jpeg_folder), format=format, keep=keep))
    assert len(run.result("train")["skipped"]) == 5
    assert run.result("pixels")["parameters"] > 0
    page = (run.folder / "report.html").read_text()
    assert all(words in page for words in ("Confusion", "patches of pixels", "What the network is given", "not used"))
    rows = paper.verbs["predict"](run, str(jpeg_folder / "class0"), top=2)
    assert {"file", "1.", "2."} == set(rows[0])
    measured = paper.verbs["evaluate"](run)
    assert measured["top-1 %"] == pytest.approx(100 * run.result("evaluate")["top1"], abs=0.01)


@torch.no_grad()
def test_files_that_the_user_wrote_are_read_as_they_lie(jpeg_folder, tmp_path):
    """The same image gives the same answer, whether we write the file or the user does."""
    config = tiny("laptop", data=str(jpeg_folder))
    run = carry_out(tmp_path / "run", config)
    test = files_of(config, "test")
    (tmp_path / "mine").mkdir()
    pixels = test.images[0]["image"].as_subclass(torch.Tensor)
    (tmp_path / "mine" / "a.tif").write_bytes(encode_image(pixels))
    (tmp_path / "mine" / "b.tif").write_bytes(b"x" * 100_000)
    with measure.no_decoders():
        rows = paper.verbs["predict"](run, str(tmp_path / "mine"), top=1, raw=True)
    trained = Trained.of(run)
    best = trained.network(test[0]["bytes"][None]).softmax(1)
    assert rows[0] == {"file": "a.tif", "1.": f"{trained.classes[int(best.argmax())]} {float(best.max()):.1%}"}
    assert rows[1]["1."].startswith("not used: 100000 bytes are more than")


def test_files_of_any_kind(tmp_path):
    """Texts against counted bytes: told apart within a few steps or not, the run is whole."""
    for number in range(24):
        for name, content in (("text", f"letter {number}, all is well. " * (3 + number)), ("numbers", "")):
            (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
            data = content.encode() or bytes(range(number, number + 200))
            (tmp_path / "data" / name / f"{number}.dat").write_bytes(data)
    run = carry_out(tmp_path / "run", tiny("files", data=str(tmp_path / "data")), "files")
    assert run.record["stages"]["pixels"]["result"] == {} and run.result("linear")["top1"] == 1.0
    assert "how often each byte occurs" in (run.folder / "report.html").read_text()
    rows = paper.verbs["predict"](run, str(tmp_path / "data" / "text" / "3.dat"))
    assert len(rows) == 1 and rows[0]["file"] == "3.dat" and len(rows[0]) == 3
    assert paper.verbs["evaluate"](run, data=str(tmp_path / "data"), split="all")["files"] == 48


def test_released_weights_predict(tmp_path, jpeg_folder):
    torch.manual_seed(0)
    model = ByteFormer(7, 16, 2, 1, kernel=32, max_tokens=9_500, window=32, mask="official")
    weights = tmp_path / "released.safetensors"
    save_file({name: value.contiguous() for name, value in Renamed(model).weights().items()}, weights)
    recipe = paper.recipes["released"](weights=str(weights), window=32)
    run = Run.open(tmp_path / "run", slug="byteformer", recipe="released", arguments={}, config=recipe.config, command="")
    run.execute(recipe, say=lambda _: None)
    assert Trained.of(run).network.mask == "official"
    rows = paper.verbs["predict"](run, str(jpeg_folder / "class1"), top=3)
    assert len(rows) >= 8 and set(rows[0]) == {"file", "1.", "2.", "3."}
    with pytest.raises(InputError, match="no data of its own"):
        paper.verbs["evaluate"](run)


@torch.no_grad()
def test_a_file_is_judged_alone_where_the_network_looks_at_padding(tmp_path):
    torch.manual_seed(0)
    model = ByteFormer(7, 16, 2, 1, kernel=8, max_tokens=400, window=32, mask="official")
    model.head.weight.data.mul_(20)  # random weights that are sure of something
    weights = tmp_path / "released.safetensors"
    save_file({name: value.contiguous() for name, value in Renamed(model).weights().items()}, weights)
    recipe = paper.recipes["released"](weights=str(weights), format="raw", window=32)
    run = Run.open(tmp_path / "run", slug="byteformer", recipe="released", arguments={}, config=recipe.config, command="")
    run.execute(recipe, say=lambda _: None)
    network = Trained.of(run).network

    contents = {f"{length}.mp3": bytes((length * place) % 251 for place in range(length)) for length in (60, 150, 700)}
    for number, (name, content) in enumerate(contents.items()):
        (tmp_path / "sound" / str(number)).mkdir(parents=True)
        (tmp_path / "sound" / str(number) / name).write_bytes(content)
    short, long = (as_numbers(contents[name]) for name in ("60.mp3", "700.mp3"))
    assert not torch.allclose(network(pad([short, long]))[0], network(short[None])[0], atol=0.1)

    beside = paper.verbs["predict"](run, str(tmp_path / "sound"), top=7)
    alone = [paper.verbs["predict"](run, str(tmp_path / "sound" / row["file"]), top=7)[0] for row in beside]
    assert len(beside) == 3 and [row | {"file": ""} for row in beside] == [row | {"file": ""} for row in alone]

    sure = [network(as_numbers(content)[None]).log_softmax(1)[0] for content in contents.values()]
    loss = -sum(float(shares[number]) for number, shares in enumerate(sure)) / 3
    measured = paper.verbs["evaluate"](run, data=str(tmp_path / "sound"), split="all")
    assert measured["files"] == 3 and measured["loss"] == pytest.approx(loss, abs=1e-3)


def test_a_jpeg_that_is_longer_than_all_of_training_is_left_out_and_listed(tmp_path):
    for part, count in (("train", 12), ("test", 4)):
        for number in range(count):
            place = tmp_path / "data" / part / f"class{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (20 * number, 90, 90)).save(place / f"{number}.png")
    grain = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(grain.numpy()).save(tmp_path / "data" / "test" / "class1" / "grain.png")
    run = carry_out(tmp_path / "run", tiny("laptop", data=str(tmp_path / "data"), format="jpeg"))
    assert run.result("train")["files"] == 12 and run.result("evaluate")["files"] == 4
    [(key, reason)] = run.result("evaluate")["skipped"]
    most = Trained.of(run).network.most_bytes
    assert key.endswith("grain.png") and reason.endswith(f"bytes are more than {most}")
    assert run.result("train")["longest"] * 5 // 4 <= most + 8
    assert "grain.png" in (run.folder / "report.html").read_text()
    rows = paper.verbs["predict"](run, str(tmp_path / "data" / "test"), top=1)
    assert len(rows) == 5 and rows[-1] == {"file": key.removeprefix("test/"), "1.": f"not used: {reason}"}
    assert paper.verbs["evaluate"](run)["skipped"] == 1


def test_every_jpeg_is_measured_not_some():
    """A single long file among many decides how many positions there are."""
    pixels = torch.full((300, 1, 32, 32), 90, dtype=torch.uint8)
    pixels[7] = torch.randint(0, 256, (1, 32, 32), generator=torch.Generator().manual_seed(0))
    source = ImageSource.from_tensor(pixels, torch.arange(300) % 2, name="grey")
    config = paper.recipes["laptop"](format="jpeg").config
    found = lengths(written(config, source))
    assert len(found) == 300 and int(found.argmax()) == 7 and found[7] == len(encode_image(pixels[7], "jpeg"))
    tiff = lengths(written(replace(config, format="tiff"), source))
    assert len(tiff) == 300 and bool((tiff == len(encode_image(pixels[7]))).all())


def test_what_cannot_be_run(jpeg_folder, tmp_path):
    with pytest.raises(InputError, match="no variant 'byteformer_tiny'"):
        paper.recipes["paper"](variant="byteformer_tiny")
    for recipe, given in (("laptop", {}), ("paper", {}), ("released", {"weights": "some.pt"})):
        for format in ("tiff", "png", "jpeg"):
            with pytest.raises(InputError, match=f"of {format} the header's too: take format fhwc or fchw"):
                paper.recipes[recipe](format=format, keep=0.1, **given)
    with pytest.raises(InputError, match="no class folders"):
        files_of(tiny("files", data=str(jpeg_folder / "class0")), "train")
    config = tiny("laptop", data=str(jpeg_folder))
    with pytest.raises(InputError, match="network"):
        wrong = replace(config.network, arguments={**SIZES, "wide": 3})
        carry_out(tmp_path / "run", replace(config, network=wrong))


def test_variants_have_the_published_sizes():
    for name, variant in paper.variants.items():
        if variant.parameters is not None:
            with torch.device("meta"):
                found = sum(parameter.numel() for parameter in variant.build().parameters()) / 1e6
            assert found == pytest.approx(variant.parameters, rel=1e-4, abs=0.05), name


# --- claims -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["c3", "c8", "c9"])
def test_counted_claims_hold(id, tmp_path):
    claim = paper.claims[id]
    assert verdict(claim, claim.measure(Bench(tmp_path, say=lambda _: None))) == "holds"


def test_trained_claims_measure(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "BUDGET", Budget(images=48, test_images=40, epochs=1, batch=16))
    monkeypatch.setattr(measure, "SETTING", {**measure.SETTING, "width": 32, "depth": 2})
    bench = Bench(tmp_path, seeds=(0,), say=lambda _: None)
    first = {id: paper.claims[id].measure(bench) for id in ("c1", "c4", "c5", "c7", "c10")}
    for measured in first.values():
        assert -100 <= measured.value <= 100 and measured.detail
    monkeypatch.setattr(measure, "fit", None)  # a second measurement reads what the first one left
    for id in ("c1", "c7", "c10"):
        assert paper.claims[id].measure(bench).per_seed == first[id].per_seed and len(first[id].per_seed) == 1


def test_pictures_become_sounds():
    pictures = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    pictures[0, 0, 6:8, 10:12] = 255  # the fourth tone in the sixth column
    wave = measure.sonify(pictures)[0]
    assert wave.shape == (1024,) and float(wave.abs().max()) == 1
    assert not wave[:320].any() and not wave[384:].any()
    assert int(torch.fft.rfft(wave[320:384]).abs().argmax()) == 4
    assert not measure.sonify(pictures * 0).any()


def test_a_token_is_two_rows_of_pixels_unless_there_are_none():
    kernel = lambda **given: paper.recipes["laptop"](**given).config.network.arguments["kernel"]  # noqa: E731
    assert [kernel(), kernel(format="jpeg"), kernel(format="fhwc", keep=0.1), kernel(kernel=32)] == [64, 8, 6, 32]
    assert kernel(data="photos", format="fhwc") == 192 and kernel(data="photos", format="fchw") == 64
    assert [rule.pattern for rule in paper.recipes["laptop"]().config.training.optimizers["main"].rules]


def test_changes_are_flags_of_the_recipe():
    changes = {"order": "random", "keep": 0.5, "noise": 3, "permute": True}
    config = paper.recipes["laptop"](format="fhwc", **changes).config
    assert config.changes == Changes("random", 0.5, 3, True) and config.channels == 1
    for recipe, given in (("paper", {}), ("released", {"weights": "some.pt"})):
        assert paper.recipes[recipe](format="fchw", **given, **changes).config.changes == config.changes
    assert open_images(config.data, split="test", channels=config.channels)[0]["image"].shape[0] == 1
