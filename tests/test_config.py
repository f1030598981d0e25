"""Configuration: to plain data and back, overrides, differences."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paperworks.config import first_difference, from_plain, override, to_plain
from paperworks.errors import InputError


@dataclass(frozen=True)
class Schedule:
    kind: Literal["cosine", "linear"] = "cosine"
    warmup: float = 0.0


@dataclass(frozen=True)
class Model:
    dim: int = 192
    scales: tuple[int, ...] = (1, 2, 3, 4)
    name: str = "plain"
    dropout: float | None = None
    schedules: dict[str, Schedule] = field(default_factory=lambda: {"main": Schedule()})


@dataclass(frozen=True)
class Config:
    data: str = "default"
    strict: bool = False
    model: Model = field(default_factory=Model)


models = st.builds(
    Model,
    dim=st.integers(-(10**9), 10**9),
    scales=st.lists(st.integers(0, 100)).map(tuple),
    name=st.text(),
    dropout=st.none() | st.floats(allow_nan=False),
    schedules=st.dictionaries(st.text(max_size=5), st.builds(Schedule, warmup=st.floats(0, 1)), max_size=3),
)
configs = st.builds(Config, data=st.text(), strict=st.booleans(), model=models)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(configs)
def test_a_configuration_survives_the_way_through_json(config: Config) -> None:
    assert from_plain(Config, json.loads(json.dumps(to_plain(config)))) == config


@given(st.integers(-(10**9), 10**9), st.lists(st.integers(0, 99)), st.none() | st.floats(allow_nan=False), st.booleans())
def test_an_override_with_json_sets_exactly_the_named_fields(
    dim: int, scales: list[int], dropout: float | None, strict: bool
) -> None:
    assignments = [f"model.dim={dim}", f"model.scales={scales}", f"model.dropout={json.dumps(dropout)}"]
    made = override(Config(), [*assignments, f"strict={json.dumps(strict)}"])
    assert made == Config(strict=strict, model=Model(dim=dim, scales=tuple(scales), dropout=dropout))


@given(st.text())
def test_any_text_can_be_set_when_it_is_quoted(text: str) -> None:
    assert override(Config(), [f"model.name={json.dumps(text)}"]).model.name == text


@pytest.mark.parametrize("text", ["my photos", "2024", "true", "[1, 2]", "a=b", "", "1e3"])
def test_text_fields_take_unquoted_words_even_when_they_look_like_json(text: str) -> None:
    assert override(Config(), [f"data={text}"]).data == text


@given(configs)
def test_overriding_every_leaf_turns_one_configuration_into_the_other(config: Config) -> None:
    plain = to_plain(config)
    leaves = {"data": plain["data"], "strict": plain["strict"], **{f"model.{k}": v for k, v in plain["model"].items()}}
    assert override(Config(), [f"{path}={json.dumps(value)}" for path, value in leaves.items()]) == config


def test_overrides_reach_into_dictionaries() -> None:
    made = override(Config(), ["model.schedules.main.warmup=0.5", "model.schedules.main.kind=linear"])
    assert made.model.schedules == {"main": Schedule("linear", 0.5)}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.dmi=3", "no field 'model.dmi'; did you mean 'dim'?"),
        ("modell.dim=3", "no field 'modell'; did you mean 'model'?"),
        ("model.dim.x=3", "no field 'model.dim.x'; nothing lies below it"),
        ("zzzzzz=3", "there are data, strict, model"),
        ("model.dim", "path.to.field=value"),
        ("model.dim=large", "model.dim: .*got 'large'"),
        ("model.dim=1.5", "model.dim: "),
        ("model.schedules.main.kind=cosin", "'cosine' or 'linear'.*got 'cosin'"),
        ('model={"dmi": 3}', "no field 'model.dmi'; did you mean 'dim'?"),
        ("strict=perhaps", "strict: "),
    ],
)
def test_a_bad_override_is_one_error_that_names_the_field(assignment: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        override(Config(), [assignment])


@given(json_values)
def test_a_tree_does_not_differ_from_itself(tree: Any) -> None:
    assert first_difference(tree, json.loads(json.dumps(tree))) is None


@given(json_values, json_values)
def test_a_difference_is_between_unequal_values_and_missing_ones_only_where_it_is_none(there: Any, here: Any) -> None:
    found = first_difference({"top": there}, {"top": here})
    if found:
        assert found[0].startswith("top") and found[1] != found[2]
    else:
        assert _without_nones(there) == _without_nones(here)


def _without_nones(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {name: _without_nones(value) for name, value in tree.items() if value is not None}


def test_the_first_difference_is_named_by_its_path() -> None:
    there = to_plain(Config(model=Model(dim=1)))
    here = to_plain(Config(model=Model(dim=2, scales=(1,))))
    assert first_difference(there, here) == ("model.dim", 1, 2)
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == ("b", None, 2)
    assert first_difference({"a": 1}, {"a": 1, "new": None}) is None  # a field that came later and is not used
    assert first_difference({"a": math.nan}, {"a": math.nan}) is None
