import json

import pytest

from paperworks.config import override, to_plain
from paperworks.reporting.cells import FOLDED, settings, shown, table
from paperworks.training import TrainConfig


@pytest.mark.parametrize(
    "value, text",
    [
        (3, "3"), (2024, "2024"), (1234567, "1,234,567"), (0.123456, "0.1235"), (1e-7, "1e-07"), (123456.7, "123,457"),
        (12.0, "12"), (True, "yes"), (None, "-"), (float("nan"), "nan"), (float("inf"), "inf"), ("as it is", "as it is"),
    ],
)  # fmt: skip
def test_values_as_people_read_them(value, text):
    assert shown(value) == text


def test_columns_of_numbers_are_set_to_the_right():
    rows = [["conv", 12, "3.4 %", "-", "x"], ["fc", 5, "-", "1.2x", 4], ["bn", 2.5, "+1e-3", "", "-"]]
    made = table("t", ["layer", "weights", "share", "speed", "mixed"], rows)
    assert [look for _, look in made["columns"]] == ["", "number", "number", "number", ""]
    assert made["rows"][0][1] == ("12", "number") and made["rows"][1][4] == ("4", "short")


def test_long_texts_may_wrap_and_long_tables_are_folded():
    sentence = "a sentence that goes on and on"
    assert table("t", ["a"], [[sentence]])["rows"][0][0] == (sentence, "long")
    assert not table("t", ["a"], [[1]] * FOLDED)["folded"] and table("t", ["a"], [[1]] * (FOLDED + 1))["folded"]


def test_settings_can_be_given_to_the_command_line_as_they_stand():
    config = TrainConfig(10, 2, ema=0.99)
    groups = settings(to_plain(config))
    lines = [line for _, lines in groups for line in lines]
    assert ("steps", "10") in groups[0][1] and ("ema", "0.99") in groups[0][1]
    assert [name for name, _ in groups] == ["", "optimizers"]
    assert override(config, [f"{path}={value}" for path, value in lines]) == config


def test_texts_and_empty_values_in_settings():
    lines = dict(settings({"data": "my photos", "empty": "", "none": None, "scales": [1, 2], "rules": {}})[0][1])
    assert lines == {"data": "my photos", "empty": '""', "none": "null", "scales": "[1, 2]", "rules": "{}"}
    assert json.loads(lines["scales"]) == [1, 2]
