"""NASNet in particular: timm's weights, the mobile file's gaps, other cells, dropped paths, the auxiliary head, mistakes."""

from functools import partial

import pytest
import torch
from timm.models.nasnet import NASNetALarge
from torch import nn
from torch.nn import functional as F

from paperworks.analysis.counting import count_parameters
from paperworks.backbones.cells import Cell, FactorisedReduction, make_operation
from paperworks.backbones.genotype import NASNET_A, OPERATIONS, Block, CellPlan, Genotype, genotype_of
from paperworks.backbones.nasnet import NASNet, official_name, reduction_positions
from paperworks.backbones.registry import create
from paperworks.errors import InputError
from paperworks.layers.convolution import SameConv2d
from paperworks.layers.drop_path import DropPath, ScheduledDropPath, set_progress
from paperworks.objectives.classify import Classify
from paperworks.training import Context

TINY = {"num_cells": 3, "filters": 4, "stem": "cifar", "num_classes": 5}


@pytest.mark.parametrize("size", [64, 79])
def test_timms_weights_load_and_its_outputs_come_out(size):
    torch.manual_seed(0)
    peer = NASNetALarge(num_classes=5, stem_size=6, num_features=96).eval()
    arguments = {"num_classes": 5, "stem_size": 6, "num_features": 96, "skip_reduction_input": True, "count_padding": True}
    model = NASNet.from_official(peer.state_dict(), **arguments).eval()
    x = torch.rand(1, 3, size, size)
    with torch.no_grad():
        assert torch.allclose(model(x), peer(x), rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(model.forward_intermediates(x)[1], peer.forward_intermediates(x)[1]):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_full_network_takes_timms_file():
    import timm

    with torch.device("meta"):
        peer = timm.create_model("nasnetalarge")
        ours = create("nasnetalarge")
    names = {official_name(key): value.shape for key, value in peer.state_dict().items()}
    assert names == {key: value.shape for key, value in ours.state_dict().items()}


def test_the_mobile_files_cells_are_numbered_with_gaps_and_our_own_without():
    model = NASNet(num_cells=6, filters=4, num_classes=5)
    weights = {key: torch.rand_like(value) for key, value in model.state_dict().items() if value.is_floating_point()}
    theirs = {}
    for key, value in weights.items():
        cell, _, rest = key.partition(".")
        number = cell.removeprefix("cell_")
        if number.isdigit():
            cell = f"cell_{int(number) // 2 * 6 + int(number) % 2}"
        theirs[f"{cell}.{rest}".replace("conv_prev_1x1.path", "path").replace("conv_prev_1x1.final", "final")] = value
    assert "cell_13.conv_1x1.conv.weight" in theirs and "cell_12.path_1.conv.weight" in theirs
    for file in (theirs, weights):
        loaded = NASNet.from_official(file, num_cells=6, filters=4, num_classes=5).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in weights.items())


def test_the_previous_map_of_the_cell_after_a_reduction_is_the_only_difference_in_wiring():
    torch.manual_seed(0)
    plain = NASNet(**{**TINY, "num_cells": 6}).eval()
    skipping = NASNet(**{**TINY, "num_cells": 6}, skip_reduction_input=True).eval()
    skipping.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        [first, *_], [same, *_] = (model.forward_intermediates(x, intermediates_only=True) for model in (plain, skipping))
        assert torch.equal(first, same) and not torch.allclose(plain(x), skipping(x))


def test_a_factorised_reduction_sees_every_pixel():
    module = FactorisedReduction(1, 2, nn.BatchNorm2d).eval()
    with torch.no_grad():
        module.path_1.conv.weight.fill_(1), module.path_2.conv.weight.fill_(1)
        for size in (4, 5):
            x = torch.arange(float(size * size)).view(1, 1, size, size)
            even, odd = module(x)[0] * (1 + 1e-5) ** 0.5
            assert torch.allclose(even, x[0, 0, ::2, ::2])
            assert torch.allclose(odd, F.pad(x[0, 0], (0, 1, 0, 1))[1::2, 1::2][: len(even), : len(even)])


EXACT = partial(nn.BatchNorm2d, eps=0.0)


@pytest.mark.parametrize("size", [(8, 10), (7, 9), (8, 9)])
@pytest.mark.parametrize("name", ["conv_3x3", "dil_conv_3x3", "conv_1x3_3x1", "conv_1x7_7x1"])
def test_striding_operations_of_a_block_look_at_the_same_pixels(name, size):
    operation, x = make_operation(name, 1, 1, 2, EXACT).eval(), torch.rand(1, 1, *size)
    with torch.no_grad():
        for module in operation.modules():
            if isinstance(module, nn.Conv2d):
                high, wide = module.kernel_size
                nn.init.zeros_(module.weight)[0, 0, high // 2, wide // 2] = 1
        assert torch.equal(operation(x), x[:, :, 1 - size[0] % 2 :: 2, 1 - size[1] % 2 :: 2])


@pytest.mark.parametrize("side", [3, 7])
def test_a_pair_of_bands_is_padded_as_a_same_convolution(side):
    torch.manual_seed(0)
    pair = make_operation(f"conv_1x{side}_{side}x1", 2, 3, 2, EXACT).eval()
    wide, high = SameConv2d(2, 3, (1, side), (1, 2), bias=False), SameConv2d(3, 3, (side, 1), (2, 1), bias=False)
    wide.weight, high.weight = pair.wide.weight, pair.high.weight
    with torch.no_grad():
        for size in ((8, 8), (9, 8), (8, 9), (9, 9)):
            x = torch.rand(2, 2, *size)
            assert torch.allclose(pair(x), high(wide(x).relu()), atol=1e-6)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x


def test_an_identity_is_not_dropped_where_it_strides_or_widens_either():
    plan = CellPlan((Block(0, 1, "identity", "identity"), Block(0, 2, "sep_conv_3x3", "identity")), (1, 3))
    for halves, channels in ((True, 4), (False, 6)):
        drop = Dropping()
        cell = Cell(plan, 4, channels, None, nn.BatchNorm2d, halves=halves, drop_path=drop)
        assert not isinstance(cell.comb_iter_0_right, nn.Identity)
        cell(torch.rand(2, channels, 8, 8))
        assert drop.calls == 1


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_gives_the_map_that_a_cell_expects(name, stride):
    x = torch.rand(2, 4, 7, 10)
    for outputs in (4, 6):
        assert make_operation(name, 4, outputs, stride, nn.BatchNorm2d)(x).shape == (
            2,
            outputs,
            -(-7 // stride),
            -(-10 // stride),
        )


def test_what_is_traced_at_one_size_is_right_at_others():
    torch.manual_seed(0)
    model = NASNet(num_cells=3, filters=4, num_classes=3).eval()
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.rand(1, 3, 64, 64), check_trace=False)
        for size in ((64, 65), (67, 70)):
            x = torch.rand(1, 3, *size)
            assert torch.allclose(traced(x), model(x), atol=1e-5)


@pytest.mark.slow
def test_an_onnx_file_takes_images_of_any_size(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = NASNet(num_cells=2, reductions=1, filters=2, stem="cifar", num_classes=3).eval()
    sizes = ({2: torch.export.Dim("height", min=4), 3: torch.export.Dim("width", min=4)},)
    file = tmp_path / "net.onnx"
    torch.onnx.export(model, (torch.rand(1, 3, 24, 24),), file, dynamo=True, verbose=False, dynamic_shapes=sizes)
    session = ort.InferenceSession(file)
    for size in ((24, 24), (33, 34)):
        x = torch.rand(1, 3, *size)
        [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(found), model(x), atol=1e-5)


def test_the_larger_cifar_network_is_larger_than_the_paper_prints():
    """6@768 has the printed 3.3 M; the same construction at 7@2304 does not have the printed 27.6 M."""
    with torch.device("meta"):
        small, large = (count_parameters(create(f"nasnet_a_cifar_{name}")) / 1e6 for name in ("6_768", "7_2304"))
    assert (round(small, 1), round(large, 1)) == (3.3, 32.6)


def test_published_cells_return_more_than_what_is_unread():
    assert NASNET_A.normal.unread() == (2, 3, 4, 5, 6) and NASNET_A.normal.concat == (1, 2, 3, 4, 5, 6)
    assert NASNET_A.reduction.unread() == (4, 5, 6) and NASNET_A.reduction.concat == (3, 4, 5, 6)
    assert Genotype.from_plain(NASNET_A.to_plain()) == NASNET_A == genotype_of("A")
    assert reduction_positions(18, 2) == [6, 12] and reduction_positions(5, 1) == [2]


def test_paths_are_dropped_more_often_the_deeper_and_the_later():
    model = NASNet(**TINY, drop_path_rate=0.4).train()
    drops = [module for module in model.modules() if isinstance(module, ScheduledDropPath)]
    assert [round(drop.rate, 3) for drop in drops] == [0.08, 0.16, 0.24, 0.32, 0.4]
    x = torch.ones(1000, 1, 1, 1)
    assert torch.equal(drops[-1](x), x)  # before anybody told it how far training is
    set_progress(model, 1, 2)
    torch.manual_seed(0)
    out = drops[-1](x)
    assert out.unique().tolist() == pytest.approx([0.0, 1.25]) and float((out == 0).float().mean()) == pytest.approx(
        0.2, abs=0.04
    )
    constant = NASNet(**TINY, drop_path_rate=0.4, drop_path_schedule="constant")
    assert not any(isinstance(module, ScheduledDropPath) for module in constant.modules())
    assert sum(isinstance(module, DropPath) for module in constant.modules()) == 5


def test_classify_tells_the_network_how_far_training_is_and_trains_the_auxiliary_head():
    torch.manual_seed(0)
    model = NASNet(**TINY, drop_path_rate=0.4, auxiliary_map=16).train()
    batch = {"image": torch.rand(2, 3, 32, 32), "label": torch.tensor([0, 1])}
    Classify(model).loss(batch, "main", Context(5, 20, 0)).total.backward()
    drop = next(module for module in model.modules() if isinstance(module, ScheduledDropPath))
    assert float(drop.current) == pytest.approx(0.25 * drop.rate)
    assert model.auxiliary is not None and model.auxiliary.linear.weight.grad is not None
    model.eval()
    with torch.no_grad():
        logits, side = model.forward_with_auxiliary(batch["image"])
        assert side.shape == (2, 5) and torch.equal(logits, model(batch["image"]))
        with pytest.raises(InputError, match="built for maps of 16 pixels"):
            model.forward_with_auxiliary(torch.rand(1, 3, 64, 64))


def test_mistakes_are_named():
    sep = "sep_conv_3x3"
    for build, words in (
        (lambda: NASNet(filters=6), "take a multiple of 4"),
        (lambda: NASNet(filters=4 * 3, stem="cifar", num_cells=2), "at least one cell in each stack"),
        (lambda: NASNet(**{**TINY, "filters": 3}, channel_multiplier=1), "take an even number"),
        (lambda: NASNet("Z"), "no genotype 'Z'"),
        (lambda: NASNet(stem="photo"), "stem='photo'"),
        (lambda: NASNet({"normal": {}}), "'reduction' is missing"),
        (lambda: NASNet(**TINY, auxiliary_map=4), "too small"),
        (lambda: CellPlan((Block(0, 2, sep, sep),), (2,)), "block 0 reads state 2"),
        (lambda: CellPlan((Block(0, 1, sep, "sep_conv_3x4"),), (2,)), "did you mean 'sep_conv_3x3'"),
        (lambda: CellPlan((Block(0, 1, sep, sep),), ()), "at least one state in its concat list"),
        (lambda: CellPlan((Block(0, 1, sep, sep),), (3,)), "names state 3"),
        (lambda: CellPlan((Block(0, 0, sep, sep),), (2,)), "state 1 is read by no block"),
        (lambda: CellPlan((Block(0, 1, sep, sep), Block(0, 1, sep, sep)), (3,)), "state 2 is read by no block"),
        (lambda: create("nasnetamobile")(torch.rand(1, 3, 20, 20)), "at least 32x32"),
    ):
        with pytest.raises(InputError, match=words):
            build()
