"""Search by barcodes: against plain loops, ties, patients, scores, bad input."""

from statistics import median

import pytest
import torch

from paperworks.analysis.retrieval import (
    allowed_pairs,
    barcodes,
    distances,
    f1_scores,
    leave_one_out,
    pack,
    ranking,
    search_scores,
    unpack,
    vertical_scores,
    vote,
)
from paperworks.errors import InputError


def slides(count: int = 7, bits: int = 33) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(number % 4 + 1, bits, generator=generator) < 0.5 for number in range(count)]


def by_loops(query: torch.Tensor, other: torch.Tensor) -> float:
    return median(min(int((a != b).sum()) for b in other) for a in query)


def test_a_bit_is_set_where_features_fall():
    assert barcodes(torch.tensor([[3.0, 1.0, 1.0, -2.0]])).tolist() == [[True, False, True]]
    with pytest.raises(InputError, match="NaN"):
        barcodes(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(InputError, match="2 or more"):
        barcodes(torch.rand(4, 1))


def test_barcodes_of_1024_features_take_128_bytes():
    codes = barcodes(torch.randn(34, 1024))
    assert pack(codes).shape == (34, 128) and torch.equal(unpack(pack(codes), 1023), codes)
    with pytest.raises(InputError, match="take 2 bytes"):
        unpack(pack(codes), 16)


@pytest.mark.parametrize("short_numbers", [True, False])
def test_distances_equal_plain_loops(monkeypatch, short_numbers):
    monkeypatch.setattr("paperworks.analysis.retrieval.bf16_is_fast", lambda device: short_numbers)
    codes = slides()
    expected = torch.tensor([[by_loops(a, b) for b in codes] for a in codes], dtype=torch.float64)
    assert torch.equal(distances(codes), expected) and not torch.equal(expected, expected.T)
    assert torch.equal(distances(codes[2:4], codes[3:]), expected[2:4, 3:])
    monkeypatch.setattr("paperworks.analysis.retrieval.NUMBERS_AT_ONCE", 40)  # two or three patches at a time
    assert torch.equal(distances(codes), expected)


def test_bad_sets_of_barcodes_are_named():
    with pytest.raises(InputError, match="slide 1"):
        distances([slides()[0], torch.zeros(0, 33, dtype=torch.bool)])
    with pytest.raises(InputError, match="8 and of 33 bits"):
        distances(slides(2), [torch.zeros(2, 8, dtype=torch.bool)])
    with pytest.raises(InputError, match="at least one"):
        distances([])


def test_the_nearest_vote_without_the_query_and_its_patient():
    table = torch.tensor([[0.0, 1, 2, 3], [1, 0, 5, 4], [3, 2, 0, 1], [4, 3, 1, 0]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0])
    assert leave_one_out(table, labels, 1).tolist() == [1, 0, 0, 1]
    assert leave_one_out(table, labels, 1, ["a", "a", "b", "b"]).tolist() == [1, 0, 1, 1]
    assert ranking(torch.tensor([2.0, 1, 1, 0], dtype=torch.float64)).tolist() == [3, 1, 2, 0]
    assert vote([2, 1, 1, 2]) == 2 and vote([2, 1, 1]) == 1
    assert allowed_pairs(3, ["x", "y", "x"]).tolist() == [[False, True, False], [True, False, True], [False, True, False]]


def test_searches_that_cannot_be_are_named():
    table, labels = torch.zeros(3, 3, dtype=torch.float64), torch.tensor([0, 1, 0])
    with pytest.raises(InputError, match="2 others"):
        leave_one_out(table, labels, 3)
    with pytest.raises(InputError, match="1 others"):
        leave_one_out(table, labels, 2, ["a", "a", "b"])
    with pytest.raises(InputError, match="0 others"):
        leave_one_out(table[:1, :1], labels[:1], 1)
    with pytest.raises(InputError, match="2 labels"):
        leave_one_out(table, labels[:2], 1)
    with pytest.raises(InputError, match="2 patients"):
        leave_one_out(table, labels, 1, ["a", "b"])


def test_scores_per_class_and_within_a_site():
    assert f1_scores(torch.tensor([[3, 1, 0], [1, 1, 0], [0, 0, 0]]))[:2] == [0.75, 0.5]
    assert f1_scores(torch.zeros(2, 2, dtype=torch.int64))[0] != f1_scores(torch.zeros(2, 2, dtype=torch.int64))[0]  # NaN
    places = torch.tensor([0.0, 1, 2, 10, 11, 12])
    table = (places[:, None] - places).abs().double()
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    found = search_scores(table, labels, 2, top=1)
    assert found.macro_f1 == found.accuracy == 1 and found.confusion.tolist() == [[3, 0], [0, 3]]
    within = vertical_scores(table, labels, torch.tensor([0, 0, 1, 0, 1, 1]), 2, top=1)
    assert set(within) == {0, 1} and len(within[0].predicted) == 3
    few = vertical_scores(table, torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 1, 1, 0, 1]), 2, top=2)
    assert set(few) == {0}  # the other site has a single other slide for each
    own = vertical_scores(table, labels, torch.tensor([0, 0, 1, 0, 1, 1]), 2, top=1, patients=["a", "b", "c", "d", "d", "d"])
    assert set(own) == {0}
