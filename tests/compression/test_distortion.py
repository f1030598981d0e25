from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn

from paperworks.compression.distortion import (
    Additivity,
    Curve,
    additivity,
    gaussian_images,
    joint_distortion,
    measure_curves,
    ratio_grid,
)
from paperworks.compression.patterns import Filters
from paperworks.compression.sparsity import Mask, effective_weight, prunable_layers, set_masks, smallest_removed
from paperworks.errors import InputError


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(216, 12),
        nn.ReLU(),
        nn.Linear(12, 5),
    )


IMAGES = torch.rand(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def by_full_runs(model: nn.Module, images: torch.Tensor, ratios) -> tuple[np.ndarray, np.ndarray]:
    """The definition, layer by layer and ratio by ratio, without any of the machinery."""
    model = copy.deepcopy(model).eval()
    mean, worst = [], []
    with torch.no_grad():
        reference = model(images)
        for layer in prunable_layers(model):
            weight = effective_weight(model, layer)
            dense = weight.clone()
            for ratio in ratios:
                k = int(ratio * dense.numel())
                smallest = dense.abs().flatten().topk(k, largest=False).indices
                weight.copy_(dense.flatten().index_fill(0, smallest, 0.0).view(dense.shape))
                change = (model(images) - reference).square().mean(1)
                mean.append(float(change.mean()))
                worst.append(float(change.max()))
            weight.copy_(dense)
    shape = (-1, len(ratios))
    return np.array(mean).reshape(shape), np.array(worst).reshape(shape)


@pytest.mark.parametrize("net", ["small", "resnet18", "inception_next"])
def test_curves_equal_full_re_runs(net):
    torch.manual_seed(0)
    if net == "small":
        model, images = small_net(), IMAGES
    elif net == "resnet18":
        model, images = timm.create_model("resnet18", num_classes=5), torch.rand(2, 3, 32, 32)
    else:
        model = timm.create_model("inception_next_tiny", num_classes=5, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
        images = torch.rand(4, 3, 32, 32)
    weights = copy.deepcopy(model.state_dict())
    ratios = ratio_grid(4)
    curves = measure_curves(model, images, ratios=ratios, batch_size=len(images))
    mean, worst = by_full_runs(model, images, ratios)
    np.testing.assert_allclose([c.mean for c in curves], mean, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose([c.worst for c in curves], worst, rtol=1e-5, atol=1e-12)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items()), "the model was touched"


def test_the_batch_size_does_not_matter():
    whole = measure_curves(small_net(), IMAGES, ratios=ratio_grid(6))
    pieces = measure_curves(small_net(), IMAGES, ratios=ratio_grid(6), batch_size=3)
    for a, b in zip(whole, pieces):
        np.testing.assert_allclose(a.mean, b.mean, rtol=1e-5)
        np.testing.assert_allclose(a.worst, b.worst, rtol=1e-5)


def test_a_pruned_layer_starts_from_where_it_is():
    model = small_net()
    layers = prunable_layers(model)
    for layer, units in zip(layers, (50, 2000, 0)):
        weight = effective_weight(model, layer)
        set_masks(model, {layer.name: smallest_removed(weight, torch.ones_like(weight, dtype=torch.bool), units)})
    conv, wide, last = measure_curves(model, IMAGES, ratios=ratio_grid(11))
    assert conv.removed[0] == 50 and conv.mean[0] == 0 and conv.removed[1] == int(0.4 * 162) and conv.kept[0] == 112
    assert wide.removed == (2000, 2073, 2332, 2592)
    assert last.removed[0] == 0 and len(last.ratios) == 11


def test_skipping_ratios_measures_the_ends_and_fills_in_between():
    full = measure_curves(small_net(), IMAGES)
    coarse = measure_curves(small_net(), IMAGES, every=5)
    for a, b in zip(full, coarse):
        measured = np.array(b.measured)
        assert measured[0] and measured[95:].all() and measured.sum() == 20 + 5
        np.testing.assert_allclose(np.array(a.worst)[measured], np.array(b.worst)[measured], rtol=1e-6)
        assert np.isfinite(b.worst).all() and np.all(np.array(b.worst)[1:] >= 0)
        ratio = np.array(b.mean)[20:95] / np.array(a.mean)[20:95]
        assert 0.5 < np.median(ratio) < 2


def test_filters_are_removed_whole():
    model = small_net()
    conv, *_ = measure_curves(model, IMAGES, pattern=Filters())
    assert set(conv.kept) == {27 * k for k in range(7)}


def test_curves_survive_json():
    curve = measure_curves(small_net(), IMAGES, ratios=ratio_grid(3))[0]
    assert Curve.from_plain(curve.to_plain()) == curve


def test_joint_distortion_of_nothing_is_zero_and_modes_are_put_back():
    model = small_net().train()
    model[1].eval()
    twin = copy.deepcopy(model)
    assert joint_distortion(model, twin, IMAGES) == (0.0, 0.0)
    assert model.training and not model[1].training
    with torch.no_grad():
        twin[6].bias += 2
    mean, worst = joint_distortion(model, twin, IMAGES, batch_size=4)
    assert mean == pytest.approx(4, rel=1e-5) and worst == pytest.approx(4, rel=1e-5)
    assert Additivity(3.0, 2.0).ratio == 1.5


def test_additivity_measures_both_sides():
    model = small_net()
    layers = prunable_layers(model)
    curves = {c.layer.name: c for c in measure_curves(model, IMAGES, ratios=ratio_grid(5))}
    chosen = (1, 2, 0)
    removed = [curves[layer.name].removed[i] for layer, i in zip(layers, chosen)]
    both = additivity(model, layers, removed, IMAGES, batch_size=4)
    for measure in ("mean", "worst"):
        alone = sum(curves[layer.name].values(measure)[i] for layer, i in zip(layers, chosen))
        assert both[measure].summed == pytest.approx(alone, rel=1e-5)
    pruned = copy.deepcopy(model)
    for layer, units in zip(layers, removed):
        weight = effective_weight(pruned, layer)
        weight.copy_(weight * smallest_removed(weight, torch.ones_like(weight, dtype=torch.bool), units))
    assert (both["mean"].joint, both["worst"].joint) == pytest.approx(joint_distortion(model, pruned, IMAGES), rel=1e-5)
    set_masks(model, {"4": torch.rand(12, 216, generator=torch.Generator().manual_seed(0)) > 0.5})
    now = [0, int((~model[4].parametrizations.weight[0].keep).sum()), 0]
    nothing = additivity(model, layers, now, IMAGES)
    assert nothing["mean"] == Additivity(0.0, 0.0)


def test_an_output_that_is_not_finite_forbids_the_ratio():
    class Divides(nn.Linear):
        def forward(self, x):
            return super().forward(x) / (self.weight.abs().sum() > 0)

    curve = measure_curves(nn.Sequential(Divides(4, 3, bias=False)), torch.rand(2, 4), ratios=(0, 0.5, 1))[0]
    assert np.isfinite(curve.worst[:2]).all() and curve.worst[2] == np.inf


def test_zero_data_images_are_standard_normal():
    images = gaussian_images(64, (3, 16, 16), torch.Generator().manual_seed(0))
    assert images.shape == (64, 3, 16, 16) and abs(float(images.mean())) < 0.02 and abs(float(images.std()) - 1) < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(images=IMAGES[:0]), "calibration batch is empty"),
        (dict(images=IMAGES, ratios=(0.0, 0.5)), "rise from 0 to 1"),
        (dict(images=IMAGES, every=0), "every=0"),
        (dict(images=IMAGES, ratios=(0.1, 1.0)), "rise from 0 to 1"),
        (dict(images=IMAGES * float("nan")), "not finite"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(InputError, match=message):
        measure_curves(small_net(), **arguments)
    with pytest.raises(InputError, match="at least 0 and 1"):
        ratio_grid(1)


def test_masks_in_the_model_do_not_survive_in_the_copy_only():
    model = small_net()
    set_masks(model, {"0": torch.rand(6, 3, 3, 3) > 0.5})
    measure_curves(model, IMAGES, ratios=ratio_grid(3))
    assert isinstance(model[0].parametrizations.weight[0], Mask)
