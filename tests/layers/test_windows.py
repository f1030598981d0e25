"""Windows of maps: which positions they hold, the way back, padding, and the same by index for exported networks."""

import pytest
import torch

from paperworks.errors import InputError
from paperworks.layers import windows
from paperworks.layers.windows import as_tokens, cut_windows, from_windows, join_windows, pad_to_windows, to_windows


def test_windows_hold_neighbours_row_by_row():
    x = torch.arange(24).view(1, 4, 6, 1)
    found = to_windows(x, (2, 3))
    assert found.shape == (4, 2, 3, 1)
    assert found[1].flatten().tolist() == [3, 4, 5, 9, 10, 11] and found[2].flatten().tolist() == [12, 13, 14, 18, 19, 20]
    assert torch.equal(from_windows(found, (4, 6)), x)


def test_bands_cost_no_copy():
    x = torch.rand(2, 8, 6, 3, 4)[..., :2]
    assert cut_windows(x, (2, None)).data_ptr() == x.data_ptr()


def test_zeros_surround_what_does_not_divide_with_the_odd_one_behind():
    x = torch.ones(1, 5, 4, 2)
    padded = pad_to_windows(x, (3, 7))
    assert padded.shape == (1, 6, 7, 2)
    assert padded[0, :, :, 0].nonzero().min(0).values.tolist() == [0, 1]
    assert padded[0, :, :, 0].nonzero().max(0).values.tolist() == [4, 4]
    assert padded.sum() == x.sum()


@pytest.mark.parametrize("window", [(None, 3), (3, None), (None, None), (2, 3), (7, 7), (1, 1)])
@pytest.mark.parametrize("by_index", [False, True])
def test_joining_undoes_cutting(window, by_index, monkeypatch):
    monkeypatch.setattr(windows, "exporting", lambda: by_index)
    x = torch.rand(3, 5, 8, 2)
    assert torch.equal(join_windows(as_tokens(cut_windows(x, window)), window, (5, 8)), x)


@pytest.mark.parametrize("window", [(None, 3), (3, None), (None, None), (2, 3)])
def test_looking_positions_up_gives_the_same_windows(window, monkeypatch):
    x = torch.rand(2, 5, 8, 3, 4)
    plain = cut_windows(x, window)
    monkeypatch.setattr(windows, "exporting", lambda: True)
    assert torch.equal(cut_windows(x, window), plain)
    assert torch.equal(as_tokens(plain), plain.flatten(1, 2))


def test_what_does_not_fit_is_named():
    with pytest.raises(InputError, match="5x8 does not divide into windows of 2x3; pad_to_windows"):
        to_windows(torch.rand(1, 5, 8, 2), (2, 3))
    with pytest.raises(InputError, match="3 windows of 2x3 do not fill maps of 4x6"):
        from_windows(torch.rand(3, 2, 3, 1), (4, 6))
