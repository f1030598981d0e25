"""CSWin: what a token sees, stripes kept apart, any size, the authors' arguments and files, the dense-prediction form."""

import pytest
import timm
import torch
from torch import nn

import paperworks  # noqa: F401  (registers the networks with timm)
from paperworks.backbones.cswin import (
    CrossShapedAttention,
    CSWin,
    CSWinBlock,
    CSWinDense,
    StripeAttention,
    from_official_arguments,
)
from paperworks.errors import InputError
from paperworks.papers import _cswin_claims as claims
from tests.backbones.family import SMALL

OFFICIAL = {
    "img_size": 64,
    "embed_dim": 8,
    "depth": [1, 1, 2, 1],
    "split_size": [1, 2, 2, 2],
    "num_heads": [2, 2, 4, 4],
    "num_classes": 5,
    "qkv_bias": True,
}


def official_files(dense: bool = False) -> dict[str, torch.Tensor]:
    """A state dict with the authors' names."""
    model = CSWinDense(**from_official_arguments(**OFFICIAL)) if dense else CSWin(**from_official_arguments(**OFFICIAL))
    renamed = {}
    for key, value in model.state_dict().items():
        part = key.split(".")
        if part[0] == "stem":
            key = f"stage1_conv_embed.{0 if part[1] == 'conv' else 2}.{part[2]}"
        elif part[0] == "stages" and part[2] == "downsample":
            key = f"merge{part[1]}." + ".".join(part[3:])
        elif part[0] == "stages":
            rest = ".".join(part[4:]).removeprefix("attn.").replace("branches", "attns").replace("lepe", "get_v")
            key = f"stage{int(part[1]) + 1}.{part[3]}.{rest}"
        elif part[0] == "output_norms":
            key = f"norm{int(part[1]) + 1}.{part[2]}"
        renamed[key] = torch.randn_like(value) * 0.1
    return renamed


def direct(attention: StripeAttention, qkv: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """One stripe [h, w, 3, C] written out: softmax(q k^T / sqrt(d)) v + depthwise convolution of v."""
    conv = attention.lepe
    q, k, v = qkv.flatten(0, 1).unbind(1)
    heads = [x.unflatten(1, (attention.heads, -1)).transpose(0, 1) for x in (q, k, v)]
    scores = (heads[0] @ heads[1].transpose(1, 2) / heads[0].shape[-1] ** 0.5).softmax(-1)
    seen = (scores @ heads[2]).transpose(0, 1).flatten(1)
    image = v.T.reshape(1, -1, height, width)
    return seen.view(height, width, -1) + conv(image)[0].permute(1, 2, 0)


@torch.no_grad()
def test_every_stripe_attends_by_itself():
    vertical, horizontal = StripeAttention(8, 2, "vertical", 2), StripeAttention(8, 2, "horizontal", 3)
    qkv = torch.randn(1, 6, 4, 3, 8)
    found = vertical(qkv)
    for column in (0, 2):
        expected = direct(vertical, qkv[0, :, column : column + 2], 6, 2)
        assert torch.allclose(found[0, :, column : column + 2], expected, atol=1e-5)
    found = horizontal(qkv)
    for row in (0, 3):
        assert torch.allclose(found[0, row : row + 3], direct(horizontal, qkv[0, row : row + 3], 3, 4), atol=1e-5)


def test_a_token_sees_a_cross():
    assert claims.footprint(12, 12, 2) == 44
    assert claims.footprint(8, 12, 4) == 4 * 20 - 16


@torch.no_grad()
def test_a_map_as_wide_as_the_stripe_is_attended_as_a_whole():
    torch.manual_seed(0)
    stripes, whole = CrossShapedAttention(8, 2, 6), CrossShapedAttention(8, 2, None)
    weights = stripes.state_dict()
    for kind in ("weight", "bias"):
        weights[f"branches.0.lepe.{kind}"] = torch.cat([weights.pop(f"branches.{i}.lepe.{kind}") for i in (0, 1)])
    whole.load_state_dict(weights)
    x = torch.randn(2, 6, 6, 8)
    assert torch.allclose(stripes(x), whole(x), atol=1e-6)


@torch.no_grad()
def test_padding_is_zeros_around_the_projected_map():
    attention = StripeAttention(4, 1, "horizontal", 3)
    qkv = torch.randn(1, 5, 4, 3, 4)
    padded = torch.cat([qkv, torch.zeros(1, 1, 4, 3, 4)], 1)
    assert torch.allclose(attention(qkv), attention(padded)[:, :5], atol=1e-6)


@torch.no_grad()
def test_released_names_and_arguments_load():
    weights = official_files()
    model = CSWin.from_official(weights, **OFFICIAL).eval()
    assert [stage.blocks[0].attn.branches[0].direction for stage in model.stages] == ["vertical"] * 3 + ["full"]
    assert torch.equal(model.head.weight, weights["head.weight"])
    assert torch.equal(model.stages[2].blocks[1].attn.branches[1].lepe.bias, weights["stage3.1.attns.1.get_v.bias"])
    again = CSWin.from_official(weights, **from_official_arguments(**OFFICIAL)).eval()
    x = torch.rand(1, 3, 70, 50)
    assert torch.equal(model(x), again(x))
    with pytest.raises(InputError, match=r"1 missing: head\.bias"):
        CSWin.from_official({key: value for key, value in weights.items() if key != "head.bias"}, **OFFICIAL)


def test_a_stage_as_wide_as_its_stripes_has_one_branch():
    narrow = from_official_arguments(**{**OFFICIAL, "img_size": 32})
    assert narrow["stripes"] == [1, 2, None, None] and narrow["dims"] == [8, 16, 32, 64]
    dense = from_official_arguments(**{**OFFICIAL, "img_size": 32}, dense=True)
    assert dense["stripes"] == [1, 2, 2, None] and dense["dims"] == [8, 8, 16, 16]


@torch.no_grad()
def test_the_dense_form_has_normed_maps_of_any_size():
    arguments = {name: value for name, value in OFFICIAL.items() if name != "num_classes"}
    arguments["num_heads"] = [2, 4, 8, 16]
    model = CSWinDense(**from_official_arguments(**arguments, dense=True)).eval()
    weights = {f"backbone.{key}": value for key, value in model.state_dict().items()}
    weights["decode_head.conv.weight"] = torch.rand(1)
    again = CSWinDense.from_official(weights, **arguments).eval()
    x = torch.rand(1, 3, 75, 101)
    maps = again.forward_intermediates(x, intermediates_only=True)
    assert [each.shape[1:] for each in maps] == [(8, 19, 25), (16, 10, 13), (32, 5, 7), (64, 3, 4)]
    for each, expected in zip(maps, model.forward_intermediates(x, intermediates_only=True)):
        assert torch.equal(each, expected) and each.mean(1).abs().max() < 1e-5
    last, [second] = again.forward_intermediates(x, indices=[1], stop_early=True)
    assert torch.equal(second, maps[1]) and torch.equal(last, second)
    assert torch.equal(again.forward_features(x), maps[-1])


@torch.no_grad()
def test_the_dense_form_starts_from_a_classifier():
    weights = official_files()
    arguments = {**OFFICIAL, "num_heads": [2, 4, 8, 16], "num_classes": 0}
    model = CSWinDense.from_official(weights, **arguments)
    assert torch.equal(model.stem.conv.weight, weights["stage1_conv_embed.0.weight"])
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in model.output_norms)


def test_timm_takes_feature_maps():
    arguments = {name: value for name, value in SMALL["cswin_tiny"].items()}
    model = timm.create_model("cswin_tiny_dense", features_only=True, out_indices=(1, 3), **arguments)
    maps = model(torch.rand(1, 3, 96, 64))
    assert [each.shape[1:] for each in maps] == [(16, 12, 8), (32, 3, 2)] and model.feature_info.channels() == [16, 32]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"heads": (3, 4, 8, 16), "dims": (66, 128, 256, 512)}, "stage 1: 3 heads do not split"),
        ({"dims": (64, 128, 250, 512)}, "stage 3: a width of 250 does not divide into 8 heads"),
        ({"stripes": (1, 0, 7, None)}, "stage 2: a stripe of width 0"),
        ({"stripes": (1, 2, 7)}, "stripes has 3 entries for 4 stages"),
        ({"patch_size": 3}, "patch_size=3"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with torch.device("meta"), pytest.raises(InputError, match=words):
        CSWin(**arguments)


def test_bad_images_are_named():
    with pytest.raises(InputError, match="at least 32x32"):
        CSWin(**SMALL["cswin_tiny"])(torch.rand(1, 3, 31, 64))
    with pytest.raises(InputError, match="img_size=100"):
        from_official_arguments(img_size=100)


@torch.no_grad()
def test_the_networks_that_claims_compare_differ_in_one_thing():
    x = torch.rand(2, 3, 32, 32)
    counts = {}
    for name, build in claims.NETWORKS.items():
        model = build(10).eval()
        assert model(x).shape == (2, 10)
        counts[name] = sum(parameter.numel() for parameter in model.parameters())
        if name != "relative":
            assert model(claims.larger(x)).isfinite().all()
    assert counts["CSWin"] == counts["shifted windows"]


@torch.no_grad()
def test_shifted_windows_do_not_look_across_the_border():
    attention = claims.ShiftedWindows(8, 2, 4, 2)
    nn.init.zeros_(attention.lepe.weight)
    x = torch.randn(1, 8, 8, 8)
    changed = x.clone()
    changed[:, 0] += 1.0
    moved = (attention(x) - attention(changed)).abs().amax(3)[0] > 1e-7
    assert moved[:2].all() and not moved[2:].any()


@pytest.mark.slow
def test_exports_take_images_of_any_size(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    import onnxruntime

    model = CSWin((8, 12), (1, 1), (2, 2), (3, None), num_classes=5).eval()
    example = torch.rand(2, 3, 64, 64)
    sizes = {2: torch.export.Dim("height", min=32), 3: torch.export.Dim("width", min=32)}
    shapes = ({0: torch.export.Dim("batch", min=1)} | sizes,)
    torch.onnx.export(model, (example,), str(tmp_path / "x.onnx"), dynamo=True, verbose=False, dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    traced = torch.jit.trace(model, example, check_trace=False)
    for size in ((64, 64), (101, 75)):
        x = torch.rand(3, 3, *size)
        with torch.no_grad():
            expected = model(x)
        [found] = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)
        assert torch.allclose(traced(x), expected, atol=1e-5)


def test_a_block_keeps_layout_and_shape():
    block = CSWinBlock(8, 2, 3)
    x = torch.rand(2, 8, 7, 5).contiguous(memory_format=torch.channels_last)
    assert block(x).shape == x.shape and block(x).is_contiguous(memory_format=torch.channels_last)
