import json
import time

import pytest

from benchmarks import __main__ as command
from benchmarks.harness import Ratio, Row, compare, store


def test_the_ratio_says_how_many_times_as_fast_ours_is():
    ratio = compare(lambda: time.sleep(0.002), lambda: time.sleep(0.006), rounds=4, warmup=0, least=0.0)
    assert 2 < ratio.median < 4 and ratio.low <= ratio.median <= ratio.high
    assert ratio.ours_seconds < ratio.peer_seconds


def test_both_sides_alternate_and_the_order_swaps():
    calls: list[str] = []
    compare(lambda: calls.append("ours"), lambda: calls.append("peer"), rounds=2, warmup=0, least=0.0)
    assert calls[2:] == ["ours", "peer", "peer", "ours"]  # the first two set the repeats


def test_rows_are_stored_with_machine_and_verdict(tmp_path):
    row = Row("net, batch 8", "ours", "peer", Ratio(1.5, 1.4, 1.6, 0.1, 0.15, 5), target=1.2)
    stored = json.loads(store("net", [row], tmp_path).read_text())
    assert stored["rows"][0]["met"] is True and stored["rows"][0]["ratio"]["median"] == 1.5
    assert stored["machine"]["threads"] >= 1 and "torch" in stored["versions"]


def test_an_unknown_name_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]):
    assert command.main(["inceptionnex"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
