"""The comparison itself: it must notice what a wrong replay can do."""

import torch
from safetensors.torch import save_file

from tests.parity.case import Case, compare, find_cases


def test_equal_outputs_have_no_problems():
    recorded = {"y": torch.tensor([1.0, -torch.inf, torch.nan]), "index": torch.tensor([3, 4])}
    result = compare({name: value.clone() for name, value in recorded.items()}, recorded)
    assert result.problems == () and result.worst == 0


def test_a_missing_output_a_wrong_shape_and_a_wrong_integer_are_problems():
    recorded = {"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.tensor([1, 2])}
    result = compare({"b": torch.zeros(3), "c": torch.tensor([1, 3])}, recorded)
    assert [problem.split(":")[0] for problem in result.problems] == ["a", "b", "c"]


def test_tolerance_is_absolute_plus_relative():
    recorded = {"y": torch.tensor([10.0])}
    assert not compare({"y": torch.tensor([10.0009])}, recorded, (1e-4, 0)).problems
    assert compare({"y": torch.tensor([10.002])}, recorded, (1e-4, 0)).problems
    assert compare({"y": torch.tensor([torch.nan])}, recorded, (1e-4, 0)).problems


def test_case_splits_tensors_by_prefix_and_reads_metadata(tmp_path):
    (tmp_path / "some-paper").mkdir()
    tensors = {"inputs/x": torch.ones(1), "weights/net.weight": torch.ones(2), "outputs/y": torch.ones(3)}
    save_file(tensors, tmp_path / "some-paper" / "net.safetensors", {"official": "a/b@c f.py:Net", "kwargs": '{"dim": 4}'})
    [path] = find_cases(tmp_path)
    case = Case.load(path)
    assert (case.slug, case.name, case.official, case.kwargs) == ("some-paper", "net", "a/b@c f.py:Net", {"dim": 4})
    assert list(case.inputs) == ["x"] and list(case.weights) == ["net.weight"] and list(case.outputs) == ["y"]
    assert find_cases(tmp_path / "absent") == []
