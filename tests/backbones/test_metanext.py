import pytest
import torch
from torch import nn

from paperworks.backbones.metanext import MetaNeXt
from paperworks.errors import InputError

SMALL = {"num_classes": 5, "depths": (1, 1, 2, 1), "dims": (16, 24, 32, 40)}


def small(**arguments) -> MetaNeXt:
    torch.manual_seed(0)
    model = MetaNeXt(**{**SMALL, **arguments})
    for module in model.modules():  # so that folding and residuals are seen by the tests
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, std=0.3)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.normal_(parameter, 0.5, 0.1)
        elif name.endswith("weight") and parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model.eval()


@pytest.mark.parametrize("height, width", [(32, 32), (33, 71), (224, 64)])
def test_any_size_from_32_pixels(height: int, width: int):
    final, maps = small().forward_intermediates(torch.randn(2, 3, height, width))
    assert [tuple(m.shape) for m in maps] == [(2, c, height // r, width // r) for c, r in zip(SMALL["dims"], (4, 8, 16, 32))]
    assert torch.equal(final, maps[-1])


def test_the_paths_through_the_network_agree():
    model, x = small(), torch.randn(2, 3, 64, 48)
    features = model.forward_features(x)
    assert features.is_contiguous()
    assert torch.allclose(model(x), model.forward_head(features), atol=1e-6)
    assert torch.equal(model.get_classifier()(model.forward_head(features, pre_logits=True)), model.forward_head(features))
    assert torch.equal(features, model.forward_intermediates(x)[0])
    assert torch.equal(
        model.forward_intermediates(x, indices=[-2], stop_early=True, intermediates_only=True)[0],
        model.forward_intermediates(x)[1][2],
    )


def test_memory_layouts_agree():
    model, x = small(), torch.randn(2, 3, 64, 48)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(model(x), model(last), atol=1e-6)
    model.train()
    assert torch.allclose(model(x), model(last), atol=1e-4)


def test_bad_images_are_named():
    with pytest.raises(InputError, match="at least 32x32"):
        small()(torch.randn(1, 3, 31, 64))
    with pytest.raises(InputError, match=r"\[N, 3, H, W\]"):
        small()(torch.randn(1, 1, 64, 64))


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="one width per stage"):
        MetaNeXt(depths=(1, 1), dims=(8, 16, 32))
    with pytest.raises(InputError, match="token_mixers has 2"):
        MetaNeXt(depths=(1, 1, 1), dims=(8, 16, 32), token_mixers=["identity", "identity"], mlp_ratios=4)
    with pytest.raises(InputError, match="no token mixer"):
        MetaNeXt(token_mixers="inceptoin")
    with pytest.raises(InputError, match="branch ratio"):
        small(mixer={"branch_ratio": 0.5})
    with pytest.raises(InputError, match="no head"):
        small(head="mpl")
    with pytest.raises(InputError, match="output_stride 12"):
        small(output_stride=12)
    with pytest.raises(InputError, match="no global pooling"):
        small(global_pool="mean")


class Roll(nn.Module):
    """A token mixer from outside: each position takes its right neighbour."""

    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.roll(-1, 3)


def test_any_token_mixer_can_be_plugged_in_per_stage():
    model = small(token_mixers=["inception", "depthwise", "identity", Roll], norm_layer="layer")
    kinds = [type(stage.blocks[0].token_mixer).__name__ for stage in model.stages]
    assert kinds == ["InceptionDWConv2d", "DepthwiseConv2d", "Identity", "Roll"]
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)


def test_reset_classifier_keeps_the_rest():
    model = small()
    x = torch.randn(2, 3, 32, 32)
    before = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7) and model.num_classes == 7
    assert torch.equal(model.forward_head(model.forward_features(x), pre_logits=True), before)
    with pytest.raises(InputError, match="reset_other"):
        model.reset_classifier(7, "catavgmax")
    model.reset_classifier(3, "catavgmax", reset_other=True)
    assert model(x).shape == (2, 3) and model.head_hidden_size == 80
    model.reset_classifier(0)
    assert model(x).shape == (2, 80)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax"])
def test_every_pooling_builds_a_working_head(pool: str):
    assert small(global_pool=pool)(torch.randn(1, 3, 32, 32)).shape == (1, 5)


def test_gradient_checkpointing_changes_no_gradient():
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for enable in (False, True):
        model = small(norm_layer="layer").train()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        gradients.append(model.stem[0].weight.grad)
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)


def test_drop_path_rates_grow_and_training_uses_them():
    model = small(drop_path_rate=0.4).train()
    rates = [getattr(block.drop_path, "rate", 0.0) for stage in model.stages for block in stage.blocks]
    assert rates == [0.0, *(pytest.approx(0.4 * i / 4) for i in range(1, 5))]
    x = torch.randn(2, 3, 64, 64)
    assert not torch.equal(model(x), model(x))


def test_partial_networks_for_feature_pyramids():
    model = small()
    assert model.prune_intermediate_layers([0, -3]) == [0, 1]
    assert len(model.stages) == 2 and model(torch.randn(1, 3, 32, 32)).shape == (1, 24)


def test_layer_wise_rates_see_depth():
    from timm.optim import param_groups_layer_decay

    groups = param_groups_layer_decay(small(), layer_decay=0.5, no_weight_decay_list=small().no_weight_decay())
    scales = sorted({group["lr_scale"] for group in groups})
    assert scales[-1] == 1 and len(scales) == 7  # stem, five blocks, head


def test_save_and_load(tmp_path):
    model, x = small(mixer={"band_kernel_size": 5}), torch.randn(1, 3, 32, 32)
    model.save_pretrained(tmp_path)
    assert torch.equal(MetaNeXt.from_pretrained(tmp_path)(x), model(x))
