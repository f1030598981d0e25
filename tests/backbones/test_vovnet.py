"""VoVNet: names of the authors' files, where identities and gates are, and maps of odd sizes."""

import torch
from torch import nn

from paperworks.backbones.vovnet import OneShotAggregation, VoVNet, official_name
from paperworks.layers.channel_attention import EffectiveSqueezeExcite

SMALL = {"stem_chs": (4, 4, 8), "stage_conv_chs": (4, 6, 8, 10), "stage_out_chs": (8, 12, 16, 20), "num_classes": 3}


def test_names_with_slashes_are_ours():
    expected = {
        "stem.stem_1/conv.weight": "stem.0.conv.weight",
        "stem.stem_3/norm.running_var": "stem.2.bn.running_var",
        "stage2.OSA2_1.layers.0.OSA2_1_0/conv.weight": "stages.0.blocks.0.conv_mid.0.conv.weight",
        "stage5.OSA5_2.layers.4.OSA5_2_4/norm.bias": "stages.3.blocks.1.conv_mid.4.bn.bias",
        "stage4.OSA4_1.concat.OSA4_1_concat/conv.weight": "stages.2.blocks.0.conv_concat.conv.weight",
        "stage4.OSA4_1.concat.OSA4_1_concat/norm.running_mean": "stages.2.blocks.0.conv_concat.bn.running_mean",
        "classifier.weight": "head.fc.weight",
        "stages.1.blocks.0.attn.fc.weight": "stages.1.blocks.0.attn.fc.weight",
    }
    assert {key: official_name(key) for key in expected} == expected


def official(key: str) -> str:
    """Our name as the authors' code writes it."""
    part, _, value = key.rpartition(".")
    part = part.replace(".bn", "/norm").replace(".conv", "/conv") if key.startswith("stem") else part
    if key.startswith("stem"):
        number = int(part.split(".")[1].split("/")[0])
        return f"stem.stem_{number + 1}/{part.split('/')[1]}.{value}"
    if key.startswith("head"):
        return f"classifier.{value}"
    _, stage, _, block, kind, *rest = key.split(".")
    module = f"OSA{int(stage) + 2}_{int(block) + 1}"
    layer = "norm" if rest[-2] == "bn" else "conv"
    if kind == "conv_concat":
        return f"stage{int(stage) + 2}.{module}.concat.{module}_concat/{layer}.{value}"
    return f"stage{int(stage) + 2}.{module}.layers.{rest[0]}.{module}_{rest[0]}/{layer}.{value}"


def test_a_file_of_the_authors_loads():
    torch.manual_seed(0)
    model = VoVNet(**SMALL).eval()
    theirs = {official(name): value for name, value in model.state_dict().items()}
    assert not set(theirs) & set(model.state_dict())
    again = VoVNet.from_official(
        theirs,
        stem_chs=SMALL["stem_chs"],
        config_stage_ch=SMALL["stage_conv_chs"],
        config_concat_ch=SMALL["stage_out_chs"],
        num_classes=3,
    ).eval()
    with torch.no_grad():
        x = torch.rand(1, 3, 45, 61)
        assert torch.equal(again(x), model(x))


def test_the_input_is_added_from_the_second_module_of_a_stage_on():
    model = VoVNet(**SMALL, block_per_stage=(1, 3, 1, 2)).eval()
    modules = [[block for block in stage.blocks if isinstance(block, OneShotAggregation)] for stage in model.stages]
    added = [[block.residual for block in blocks] for blocks in modules]
    assert added == [[False], [False, True, True], [False], [False, True]]
    second = modules[1][1]
    x = torch.rand(1, 12, 7, 7)
    with torch.no_grad():
        with_input = second(x)
        second.residual = False
        assert torch.allclose(with_input, second(x) + x)
    assert not any(block.residual for stage in VoVNet(**SMALL, residual=False).stages for block in stage.blocks)


def test_attention_is_in_the_last_module_of_a_stage_only():
    model = VoVNet(**SMALL, block_per_stage=(1, 3, 1, 2), attn="ese")
    gated = [[isinstance(block.attn, EffectiveSqueezeExcite) for block in stage.blocks] for stage in model.stages]
    assert gated == [[True], [False, False, True], [True], [False, True]]


def test_pooling_between_stages_keeps_the_last_row_and_column_of_odd_maps():
    model = VoVNet(**SMALL).eval()
    assert isinstance(model.stages[0].pool, nn.Identity)
    pool = model.stages[1].pool
    x = torch.zeros(1, 1, 6, 6)
    x[..., 5, 5] = 1.0
    assert pool(x).shape == (1, 1, 3, 3) and pool(x)[0, 0, 2, 2] == 1.0  # without the ceiling 2 x 2 and a zero
    with torch.no_grad():
        maps = model.forward_intermediates(torch.rand(1, 3, 100, 100), intermediates_only=True)
    assert [each.shape[-1] for each in maps] == [50, 25, 12, 6, 3]
