"""The page as a whole: what is in it, that it needs nothing else, and that bad input is named."""

import base64
import io
import re

import pytest
import torch
from PIL import Image

from paperworks.errors import InputError
from paperworks.reporting import Report
from paperworks.reporting.pictures import GAP
from paperworks.training import TrainConfig


def page(tmp_path, report: Report) -> str:
    return report.save(tmp_path / "deep" / "report.html").read_text()


def pictures(text: str) -> list[Image.Image]:
    return [
        Image.open(io.BytesIO(base64.b64decode(code))) for code in re.findall(r"data:image/(?:png|webp);base64,([^\"]+)", text)
    ]


def test_a_page_needs_nothing_else_and_holds_every_block(tmp_path):
    report = Report("A title", "and more")
    report.figures({"distance": 3.14159, "recognised": "97%"})
    report.text("One paragraph.\n\nAnother.")
    report.table("Numbers", ["name", "value"], [["a", 0.123456], ["b", True]], note="measured")
    report.images("Grid", torch.rand(12, 1, 8, 8), columns=4, labels=list("abcd"), caption="not selected")
    report.compare("Pairs", {"before": torch.rand(3, 1, 8, 8), "after": torch.rand(3, 3, 8, 8)})
    report.curves("Loss", {"loss": ([1, 2, 3], [3.0, 2.0, 1.0])})
    report.recipe(TrainConfig(10, 2), "paperworks run var --data my/photos")
    text = page(tmp_path, report)
    assert text.count("<section>") == 5 and len(pictures(text)) == 3
    assert text.count("data:image/svg+xml;base64,") == 2  # for wide and for narrow screens
    for words in (
        "A title",
        "3.142",
        "97%",
        "<p>One paragraph.</p>",
        "0.1235",
        "yes",
        "not selected",
        "<span>--data</span> <span>my/photos</span>",
    ):
        assert words in text, words
    assert "batch_size = 2" in text and re.search(r"optimizers\.\w+\.lr = ", text)  # as --set takes them
    assert not re.search(r"(src|href|srcset)=\"(?!data:|#)", text) and "<script" not in text and "url(" not in text
    assert [each.name for each in (tmp_path / "deep").iterdir()] == ["report.html"]


def test_text_from_outside_is_escaped(tmp_path):
    evil = '"><script>alert(1)</script>'
    report = Report(evil, evil)
    report.figures({evil: evil})
    report.table(evil, [evil], [[evil]], note=evil)
    report.text(evil)
    report.images(evil, torch.rand(4, 1, 4, 4), columns=2, labels=[evil, evil], caption=evil)
    report.images(evil, torch.rand(1, 1, 4, 4), labels=[evil])
    report.compare(evil, {evil: torch.rand(1, 1, 4, 4)}, labels=[evil])
    report.curves(evil, {evil: ([1], [1.0])})
    report.recipe(TrainConfig(10, 2, precision=evil), evil)  # type: ignore[arg-type]
    text = page(tmp_path, report)
    assert "<script" not in text and text.count("&lt;script&gt;") >= 15


def test_the_same_page_twice_is_the_same_file(tmp_path):
    texts = []
    for _ in range(2):
        report = Report("t")
        report.images("g", torch.zeros(2, 1, 4, 4))
        report.curves("c", {"a": ([1, 2], [1.0, 2.0]), "b": ([1, 2], [2.0, 1.0])})
        texts.append(page(tmp_path, report))
    assert texts[0] == texts[1]


def test_labels_stand_above_columns_or_below_each_image(tmp_path):
    report = Report("t")
    report.images("columns", torch.rand(4, 1, 4, 4), columns=2, labels=["one", "two"])
    report.images("each", torch.rand(4, 1, 4, 4), columns=2, labels=list("abcd"))
    text = page(tmp_path, report)
    assert "<span>one</span><span>two</span>" in text
    assert [word for word in "abcd" if f"<figcaption>{word}</figcaption>" in text] == list("abcd")
    assert len(pictures(text)) == 1 + 4


def test_long_words_above_narrow_columns_are_turned():
    report = Report("t")
    for columns, words in ((10, ["0"]), (10, ["automobile"]), (40, ["automobile"]), (4, ["some words wrap"])):
        report.images("t", torch.rand(2 * columns, 3, 32, 32), columns=columns, labels=words)
    assert [block["turned"] for block in report.blocks] == ["", "turned-on-phones", "turned", ""]


def test_rows_of_different_sizes_align(tmp_path):
    report = Report("t")
    small = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(3, -1, 2, -1)
    report.compare("t", {"input": small, "output": torch.rand(3, 3, 8, 8)}, labels=["x", "y", "z"])
    one, other = pictures(page(tmp_path, report))
    assert one.size == other.size == (3 * (64 + GAP) + GAP, 64 + 2 * GAP)
    row = [one.getpixel((GAP + x, GAP + 5))[0] for x in range(64)]
    assert row == [0] * 32 + [255] * 32  # enlarged without blurring


def test_metrics_draw_the_keys_that_occur(tmp_path):
    rows = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null}\n{"step": 3, "loss": NaN}\n{"step": 4, "loss": 1.0}\n{"st'
    (tmp_path / "metrics.jsonl").write_text(rows)
    report = Report("t")
    report.metrics("curve", tmp_path / "metrics.jsonl", ["loss", "absent"])
    report.metrics("nothing", tmp_path / "metrics.jsonl", ["absent"])
    report.metrics("no file", tmp_path / "none.jsonl", ["loss"])
    assert [block["title"] for block in report.blocks] == ["curve"]


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda r: r.images("t", torch.rand(2, 2, 4, 4)), r"not \[2, 2, 4, 4\]"),
        (lambda r: r.images("t", torch.rand(0, 3, 4, 4)), "at least one image"),
        (lambda r: r.images("t", torch.zeros(2, 3, 4, 4, dtype=torch.uint8)), "divide uint8 by 255"),
        (lambda r: r.images("t", torch.rand(6, 1, 4, 4), columns=3, labels=list("abcd")), "4 labels for 6 images in 3 columns"),
        (lambda r: r.compare("t", {"a": torch.rand(2, 1, 4, 4), "b": torch.rand(3, 1, 4, 4)}), "every row needs as many"),
        (lambda r: r.compare("t", {}), "every row needs as many"),
        (lambda r: r.table("t", ["a"], [[1, 2]]), "2 cells for 1 columns"),
        (lambda r: r.curves("t", {}), "no curve"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(InputError, match=named):
        call(Report("t"))
