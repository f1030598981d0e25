"""MaxViT: equal to timm's network, windows that change, sizes that windows do not divide, and bad input."""

import pytest
import timm
import torch

from paperworks.backbones.maxvit import MaxViT
from paperworks.backbones.registry import entries
from paperworks.errors import InputError

TINY = {"dims": (16, 24), "depths": (1, 2), "stem_width": 8, "window": 4, "head_dim": 8, "num_classes": 5}


def lively(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Statistics, gains and biases that show in the output."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("table"):
            tensor.data.normal_(0, 0.5, generator=generator)
        elif name.endswith("running_var"):
            tensor.data.uniform_(0.5, 1.5, generator=generator)
        elif name.endswith("running_mean") or (tensor.ndim == 1 and name.endswith("bias")):
            tensor.data.normal_(0, 0.1, generator=generator)
    return model.eval()


@pytest.mark.slow
def test_timms_weights_give_timms_outputs():
    name = "maxvit_tiny_tf_224"
    torch.manual_seed(0)
    theirs = lively(timm.create_model(name, num_classes=7))
    ours = MaxViT.from_official(theirs.state_dict(), num_classes=7).eval()
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = theirs.forward_intermediates(x, intermediates_only=True)
        for found, map_ in zip(ours.forward_intermediates(x, intermediates_only=True), expected, strict=True):
            assert torch.allclose(found, map_, rtol=1e-4, atol=1e-4)
        assert torch.allclose(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_timms_names_have_timms_keys_and_settings():
    for name, entry in entries().items():
        if not name.startswith("maxvit_") or "_tf_" not in name or "tiny" not in name:
            continue
        with torch.device("meta"):
            theirs, ours = timm.create_model(name), entry.build()
        assert {key: value.shape for key, value in theirs.state_dict().items()} == {
            key: value.shape for key, value in ours.state_dict().items()
        }
        assert {key: value for key, value in theirs.pretrained_cfg.items() if key in entry.cfg} == dict(entry.cfg)


def test_weights_for_another_window_are_interpolated():
    small = lively(MaxViT(**TINY))
    large = MaxViT.from_official(small.state_dict(), **{**TINY, "window": 6}).eval()
    small.set_window(6)
    x = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(large(x), small(x))
    again = MaxViT(**TINY)
    again.set_window(4)
    assert again.state_dict().keys() == large.state_dict().keys()


def test_window_and_grid_may_differ_and_be_oblong():
    model = MaxViT(**{**TINY, "window": (2, 4), "grid": (4, 2)}).eval()
    assert model(torch.rand(1, 3, 32, 64)).shape == (1, 5)
    tables = {name: tuple(value.shape[1:]) for name, value in model.named_parameters() if name.endswith("table")}
    assert {shape for name, shape in tables.items() if "attn_block" in name} == {(3, 7)}
    assert {shape for name, shape in tables.items() if "attn_grid" in name} == {(7, 3)}
    assert model.no_weight_decay() == set(tables)


def test_drop_path_grows_from_nothing_as_the_authors_have_it():
    model = MaxViT(**TINY, drop_path_rate=0.3)
    rates = [getattr(block.attn_grid.drop_path, "rate", 0.0) for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_traced_networks_take_other_sizes():
    model = lively(MaxViT(**TINY))
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.rand(2, 3, 32, 32), check_trace=False)
        for height, width in ((32, 32), (37, 50), (64, 20)):
            x = torch.rand(3, 3, height, width)
            assert torch.allclose(traced(x), model(x), atol=1e-5)


def test_levels_can_be_dropped():
    model = MaxViT(**TINY).eval()
    model.prune_intermediate_layers([1])
    assert model.num_features == 16 and model(torch.rand(1, 3, 32, 32)).shape == (1, 16)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dims": (16, 20)}, "does not divide into heads of 8"),
        ({"window": 0}, "both sides are 1 or more"),
        ({"axes": ("block", "cross")}, "there are 'block' and 'grid'"),
        ({"stem_stride": 4}, "stem_stride=4"),
        ({"activation": "gelo"}, "activation 'gelo'"),
        ({"depths": (1, 2, 1)}, "dims has 2 entries for 3 stages"),
    ],
)
def test_bad_arguments(change, words):
    with pytest.raises(InputError, match=words):
        MaxViT(**{**TINY, **change})


def test_weights_of_another_network_are_refused():
    weights = MaxViT(**{**TINY, "dims": (16, 32)}).state_dict()
    with pytest.raises(InputError, match="weights do not fit MaxViT"):
        MaxViT.from_official(weights, **TINY)
