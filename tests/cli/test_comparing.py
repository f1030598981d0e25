"""`paperworks compare`: times as people write them, unknown names, and all tasks at toy size."""

import pytest
import torch

from paperworks.cli import main
from paperworks.cli.comparing import seconds
from paperworks.errors import InputError
from paperworks.paper import Run
from paperworks.papers import _generation_report, vqgan_lc
from tests.papers.test_token_papers import Eye, Wide


@pytest.mark.parametrize(("text", "wanted"), [("90", 90), ("90s", 90), ("3min", 180), ("1.5m", 90), ("1h", 3600)])
def test_budgets(text, wanted):
    assert seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "soon", "0", "-3min", "3 years"])
def test_impossible_budgets_are_named(text):
    with pytest.raises(InputError, match="is no time"):
        seconds(text)


def test_unknown_parts_are_named(capsys, tmp_path):
    assert main(["compare", "--networks", "vovnett", "--out", str(tmp_path / "a")]) == 2
    assert "no network 'vovnett'" in capsys.readouterr().err
    assert main(["compare", "--task", "generation", "--tokenizers", "VQGAN", "--out", str(tmp_path / "b")]) == 2
    assert "no tokenizer 'VQGAN'" in capsys.readouterr().err
    assert not (tmp_path / "a").exists() and not (tmp_path / "b").exists()


@pytest.mark.slow
def test_networks_side_by_side(tmp_path, capsys):
    words = ["compare", "--networks", "simplenet", "vovnet", "--budget", "1s", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    found = Run.load(tmp_path / "run").result("report")
    assert set(found["networks"]) == {"simplenet", "vovnet"} and found["front"]
    table = (tmp_path / "run" / "table.md").read_text()
    assert table.count("\n| simplenet") + table.count("\n| vovnet") == 2
    assert "Accuracy against time" in (tmp_path / "run" / "report.html").read_text()
    assert Run.load(tmp_path / "run").record["command"].endswith("--budget 1s --networks simplenet vovnet")
    assert main(words) == 0  # nothing is done again


@pytest.mark.slow
def test_tokenizers_and_generators_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr(_generation_report, "digit_classifier", lambda folder: Eye())
    monkeypatch.setattr(vqgan_lc, "lite0", Wide)
    words = ["compare", "--task", "generation", "--budget", "1s", "--out", str(tmp_path / "run")]
    assert main([*words, "--tokenizers", "MaskGIT-VQGAN", "DetailFlow", "--generators", "GPT", "MaskGIT"]) == 0
    found = Run.load(tmp_path / "run").result("report")
    assert len(found["pairs"]) == 4 and all("Frechet distance of samples" in pair for pair in found["pairs"].values())
    assert "nats a token" in found["pairs"]["DetailFlow + GPT"] and "nats a token" not in found["pairs"]["DetailFlow + MaskGIT"]
    assert (tmp_path / "run" / "table.md").read_text().count("| MaskGIT-VQGAN |") >= 3


def test_peak_memory_counts_what_is_alive_together():
    from paperworks.analysis.live_memory import peak_memory

    x = torch.zeros(1000)  # existed before: 4,000 bytes that do not count
    assert peak_memory(lambda: (x + 1).sum()) == 4004
    assert peak_memory(lambda: [x + 1, x + 2]) == 8000

    def in_turns():
        for _ in range(5):
            y = x * 2
            del y

    assert peak_memory(in_turns) == 4000


@pytest.mark.slow
def test_three_methods_fill_one_hole(tmp_path, capsys):
    assert main(["compare", "--task", "inpainting", "--mask", "m.png", "--out", str(tmp_path / "no")]) == 2
    assert "needs the image" in capsys.readouterr().err
    assert main(["compare", "--task", "inpainting", "--budget", "1s", "--out", str(tmp_path / "run")]) == 0
    found = Run.load(tmp_path / "run").result("report")["PSNR in the hole (dB)"]
    assert set(found) == {"put", "var", "hmar", "mean of the known"}
    assert "The same pictures and masks" in (tmp_path / "run" / "report.html").read_text()
