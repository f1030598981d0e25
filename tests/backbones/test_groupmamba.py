"""GroupMamba: directions, a literal transcription of a layer on a map that is not square, the two classifiers, errors."""

import pytest
import torch
from torch.nn import functional as F

from paperworks.backbones.groupmamba import GroupMamba, GroupMambaLayer
from paperworks.errors import InputError
from paperworks.layers.cross_scan import DIRECTIONS, CrossScan, as_map, as_sequence
from tests.backbones.family import small

NAME = "groupmamba_tiny"
ORDERS = {
    1: [0, 1, 2, 3, 4, 5],
    2: [0, 3, 1, 4, 2, 5],
    3: [5, 4, 3, 2, 1, 0],
    4: [5, 2, 4, 1, 3, 0],
}
"""of the positions of a map of two rows and three columns"""


@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_directions(direction):
    x = torch.arange(6.0).view(1, 2, 3, 1).expand(2, -1, -1, 4)
    sequence = as_sequence(x, direction)
    assert sequence.shape == (6, 2, 4) and sequence[:, 0, 0].tolist() == ORDERS[direction]
    assert torch.equal(as_map(sequence, direction, 2, 3), x)


def literal(layer: GroupMambaLayer, x: torch.Tensor) -> torch.Tensor:
    """Sheet by sheet: every group on its own, a step of its scan at a time."""
    batch, height, width, dim = x.shape
    normed = layer.norm(x)
    affinity = torch.sigmoid(layer.fc2(F.relu(layer.fc1(normed.mean((1, 2))))))
    results = []
    for direction, (group, part) in enumerate(zip(layer.groups(), normed.chunk(4, -1)), start=1):
        inner, gate = group.in_proj(part).chunk(2, -1)
        maps = F.silu(group.conv2d(inner.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        tokens = as_sequence(maps, direction)
        rank = group.dt_projs_weight.shape[2]
        state, outputs = torch.zeros(batch, dim // 4), []
        for token in tokens:
            about = token @ group.x_proj_weight[0].T
            step = F.softplus(about[:, :rank] @ group.dt_projs_weight[0].T + group.dt_projs_bias[0])
            state = torch.exp(-step * group.A_logs[:, 0].exp()) * state + step * about[:, rank : rank + 1] * token
            outputs.append(state * about[:, rank + 1 :] + group.Ds * token)
        y = group.out_norm(as_map(torch.stack(outputs), direction, height, width))
        results.append(group.out_proj(y * F.silu(gate)))
    mixed = torch.cat(results, -1) * layer.skip_scale * normed * affinity[:, None, None]
    return layer.proj(layer.norm(mixed))


def test_a_layer_and_its_gradients_on_a_map_that_is_not_square():
    torch.manual_seed(0)
    layer = GroupMambaLayer(32)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.rand(2, 5, 3, 32, requires_grad=True)
    parameters = [x, *layer.parameters()]
    weight = torch.rand(2, 5, 3, 32)
    ours, theirs = layer(x), literal(layer, x)
    assert torch.allclose(ours, theirs, atol=1e-5)
    for one, other in zip(torch.autograd.grad(ours, parameters, weight), torch.autograd.grad(theirs, parameters, weight)):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5 * float(other.abs().max()) + 1e-6)


def test_all_channels_in_all_directions_do_not_depend_on_how_the_map_is_turned():
    torch.manual_seed(0)
    scan = CrossScan(8)
    for name in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias"):  # alike for all directions
        parameter = getattr(scan, name)
        parameter.data.copy_(parameter[:1].expand_as(parameter))
    scan.conv2d.weight.data.fill_(0.1)
    x = torch.rand(1, 4, 6, 8)
    with torch.no_grad():
        assert torch.allclose(scan(x.flip(1, 2)), scan(x).flip(1, 2), atol=1e-5)
        assert torch.allclose(scan(x.transpose(1, 2)), scan(x).transpose(1, 2), atol=1e-5)


def test_two_classifiers_and_one():
    model, x = small(NAME), torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        first, second = model.both(x)
        assert torch.allclose(model(x), (first + second) / 2, atol=1e-6) and not torch.allclose(first, second)
        single = (
            type(model)
            .from_official(
                model.state_dict(),
                stem_hidden_dim=8,
                embed_dims=(16, 16, 20, 32),
                mlp_ratios=(2, 2, 2, 2),
                depths=(1, 1, 2, 1),
                distillation=False,
                num_classes=5,
            )
            .eval()
        )
        assert torch.allclose(single(x), first, atol=1e-6)
    with pytest.raises(InputError, match="distillation=True"):
        single.both(x)
    model.keep_levels(2)
    assert len(model.forward_intermediates(x, intermediates_only=True)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"embed_dims": (16, 18, 20, 32)}, "four groups"),
        ({"embed_dims": (8, 16, 16, 16)}, "take 16 or more"),
        ({"embed_dims": (16, 16)}, "2 entries for 4 stages"),
        ({"directions": (1, 2, 3)}, "row by row"),
        ({"directions": (1, 2, 3, 5)}, "column by column"),
        ({"stem_strides": (2,)}, "stem_strides"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(InputError, match=words):
        GroupMamba(**{"embed_dims": (16, 16, 16, 16), "depths": (1, 1, 1, 1), **arguments})


def test_images_that_vanish():
    with pytest.raises(InputError, match="at least 32x32"):
        small(NAME)(torch.rand(1, 3, 31, 64))
