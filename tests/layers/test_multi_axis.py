"""Grids, relative biases and attention along both axes, against loops."""

import pytest
import torch

from paperworks.errors import InputError
from paperworks.layers.grids import cut_grid, join_grid
from paperworks.layers.mbconv import MBConv
from paperworks.layers.multi_axis import MultiAxisAttention, RelativeBias, resized_table


def test_a_group_of_a_grid_has_one_token_of_every_cell():
    x = torch.arange(8 * 12).view(1, 8, 12, 1)
    groups = cut_grid(x, (4, 3))
    assert groups.shape == (2 * 4, 4, 3, 1)
    assert groups[0, :, :, 0].tolist() == [[row * 12 + column for column in (0, 4, 8)] for row in (0, 2, 4, 6)]
    assert groups[5, 0, 0, 0] == 1 * 12 + 1  # second row and second column inside a cell
    assert torch.equal(join_grid(groups.flatten(1, 2), (4, 3), (8, 12)), x)


def test_grids_of_maps_that_they_do_not_divide():
    x = torch.rand(2, 7, 10, 3)
    groups = cut_grid(x, (4, 4))
    assert groups.shape == (2 * 2 * 3, 4, 4, 3)
    assert torch.equal(join_grid(groups.flatten(1, 2), (4, 4), (7, 10)), x)
    with pytest.raises(InputError, match="do not make maps of 7x10"):
        join_grid(groups[1:].flatten(1, 2), (4, 4), (7, 10))


def test_bias_depends_on_where_the_key_lies_from_its_query():
    bias = RelativeBias((2, 3), heads=1)
    table = bias.relative_position_bias_table.detach()[0]
    made = bias().detach()[0].view(2, 3, 2, 3)
    for row in range(2):
        for column in range(3):
            for down in range(2):
                for right in range(3):
                    assert made[row, column, down, right] == table[down - row + 1, right - column + 2]
    assert torch.equal(resized_table(table[None], (2, 3)), table[None])
    bias.resize((4, 4))
    assert bias().shape == (1, 16, 16)


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 2)])
@pytest.mark.parametrize("axis", ["block", "grid"])
def test_attention_by_a_loop_over_tokens(axis, size):
    torch.manual_seed(0)
    window = (2, 3)
    layer = MultiAxisAttention(8, axis, window, head_dim=4)
    x = torch.randn(2, *size, 8)
    place = [(sum(divmod(-side % part, 2)), side + (-side % part)) for side, part in zip(size, window)]
    before = [-side % part // 2 for side, part in zip(size, window)]
    assert all(length % part == 0 for (_, length), part in zip(place, window))

    def group(token, axis_number):
        """(which group, which place in it) along one side."""
        position, part = token + before[axis_number], window[axis_number]
        cell = place[axis_number][1] // part
        return (position // part, position % part) if axis == "block" else (position % cell, position // cell)

    q, k, v = layer.qkv(x).unflatten(-1, (3, 2, 4)).unbind(3)
    table = layer.rel_pos.relative_position_bias_table
    tokens = [(row, column) for row in range(size[0]) for column in range(size[1])]
    expected = torch.zeros(2, *size, 2, 4)
    for row, column in tokens:
        mine = group(row, 0), group(column, 1)
        seen = [(r, c) for r, c in tokens if group(r, 0)[0] == mine[0][0] and group(c, 1)[0] == mine[1][0]]
        scores = torch.stack(
            [
                (q[:, row, column] * k[:, r, c]).sum(-1) / 2
                + table[:, group(r, 0)[1] - mine[0][1] + 1, group(c, 1)[1] - mine[1][1] + 2]
                for r, c in seen
            ]
        ).softmax(0)
        expected[:, row, column] = sum(share[..., None] * v[:, r, c] for share, (r, c) in zip(scores, seen))
    assert torch.allclose(layer(x), layer.proj(expected.flatten(3)), atol=1e-5)


def test_mbconv_halves_as_tensorflow_does():
    block = MBConv(4, 8, stride=2).eval()
    assert block(torch.rand(1, 4, 7, 10)).shape == (1, 8, 4, 5)
    assert block.se.fc1.out_channels == 2 and block.conv1_1x1.out_channels == 32
    with pytest.raises(InputError, match="stride 3"):
        MBConv(4, 8, stride=3)
