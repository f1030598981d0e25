import re

import pytest
import torch

from paperworks.errors import InputError
from paperworks.reporting import Report, save_grid
from paperworks.reporting.pictures import GAP, grid
from paperworks.training import TrainConfig


def page(tmp_path, report: Report) -> str:
    return report.save(tmp_path / "report.html").read_text()


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
    assert text.count("<section>") == 5 and text.count("data:image/png;base64") == 2 and text.count("<svg") == 1
    for words in (
        "A title",
        "3.142",
        "97%",
        "<p>One paragraph.</p>",
        "0.1235",
        "yes",
        "not selected",
        "run var --data",
        "batch_size",
    ):
        assert words in text, words
    assert not re.search(r"(src|href)=\"(?!data:|#)", text) and "<script" not in text


def test_text_from_outside_is_escaped(tmp_path):
    report = Report("<b>", "a & b")
    report.table("t", ["<i>"], [["<script>alert(1)</script>"]])
    report.text("<img>")
    text = page(tmp_path, report)
    assert "<script>" not in text and "&lt;script&gt;" in text and "&lt;img&gt;" in text


def test_tiny_images_are_enlarged_by_whole_pixels_in_reading_order():
    images = torch.arange(4).view(4, 1, 1, 1).expand(-1, 1, 2, 2) / 3
    picture = grid(images, columns=2, scale=3)
    assert picture.size == (2 * (6 + GAP) + GAP, 2 * (6 + GAP) + GAP)
    centres = [picture.getpixel((GAP + 3 + x * (6 + GAP), GAP + 3 + y * (6 + GAP)))[0] for y in (0, 1) for x in (0, 1)]
    assert centres == [0, 85, 170, 255]


def test_not_finite_pixels_do_not_spoil_a_grid(tmp_path):
    path = save_grid(torch.full((1, 3, 4, 4), float("nan")), tmp_path / "deep" / "x.png")
    assert path.is_file()


def test_metrics_draw_the_keys_that_occur(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": 1.0}\n')
    report = Report("t")
    report.metrics("curve", tmp_path / "metrics.jsonl", ["loss", "absent"])
    report.metrics("nothing", tmp_path / "metrics.jsonl", ["absent"])
    assert [block["title"] for block in report.blocks] == ["curve"]


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda r: r.images("t", torch.rand(2, 2, 4, 4)), r"not \[2, 2, 4, 4\]"),
        (lambda r: r.images("t", torch.rand(0, 3, 4, 4)), "at least one image"),
        (lambda r: r.compare("t", {"a": torch.rand(2, 1, 4, 4), "b": torch.rand(3, 1, 4, 4)}), "every row needs as many"),
        (lambda r: r.table("t", ["a"], [[1, 2]]), "2 cells for 1 columns"),
        (lambda r: save_grid(torch.rand(1, 1, 4, 4), "x.nothing"), "use .png or .jpg"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(InputError, match=named):
        call(Report("t"))
