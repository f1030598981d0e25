"""KimiaNet: sizes, features without ReLU, files of the authors and of torchvision, frozen blocks, the prepared form."""

import pytest
import torch
import torchvision

from paperworks.analysis.counting import count_macs, count_parameters
from paperworks.backbones.inference import prepare_for_inference
from paperworks.backbones.kimianet import KimiaNet, official_name
from paperworks.errors import InputError

SMALL = {"growth_rate": 6, "block_config": (3, 2, 4, 2), "num_init_features": 12}


def test_sizes_of_the_published_network():
    with torch.device("meta"):
        model = KimiaNet()
        assert count_parameters(model) == 6_984_606 and count_parameters(model.features) == 6_953_856
        sizes = {name: count_parameters(part) for name, part in model.features.named_children()}
        assert [sizes[f"denseblock{number}"] for number in (2, 3, 4)] == [919_680, 2_837_760, 2_158_080]
        assert (sizes["transition2"], sizes["transition3"], sizes["norm5"]) == (132_096, 526_336, 2_048)
        assert count_macs(model, torch.zeros(1, 3, 1000, 1000)) == pytest.approx(56.8e9, rel=0.02)


def test_features_are_the_pooled_norm_and_may_be_negative():
    model, x = KimiaNet(**SMALL, num_classes=4).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        assert (features < 0).any() and torch.allclose(model.classifier(features), model(x))


def test_the_authors_file_loads_with_and_without_its_prefix():
    torch.manual_seed(0)
    model = KimiaNet(**SMALL, num_classes=4)
    names = {"features.": "model.0.", "classifier.": "fc_4."}
    theirs = {}
    for name, value in model.state_dict().items():
        start = next(start for start in names if name.startswith(start))
        theirs[names[start] + name.removeprefix(start)] = value
    for prefix in ("", "module."):
        again = KimiaNet.from_official({prefix + name: value for name, value in theirs.items()}, **SMALL, num_classes=4)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    assert official_name("module.fc_4.bias") == "classifier.bias"
    with pytest.raises(InputError, match="2 missing"):
        KimiaNet.from_official({name: value for name, value in theirs.items() if "fc_4" not in name}, **SMALL, num_classes=4)


def test_weights_of_torchvision_give_its_maps():
    torch.manual_seed(0)
    theirs = torchvision.models.DenseNet(6, (3, 2, 4, 2), 12, num_classes=4).eval()
    ours = KimiaNet.from_official(theirs.state_dict(), **SMALL, num_classes=4).eval()
    x = torch.rand(2, 3, 70, 64)
    with torch.no_grad():
        expected = theirs.features(x).mean((2, 3))
        found = ours.forward_head(ours.forward_features(x), pre_logits=True)
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(theirs(x), ours(x), atol=1e-3)


def test_the_prepared_form_pools_first_and_keeps_its_outputs():
    torch.manual_seed(0)
    model, x = KimiaNet(**SMALL, num_classes=4).eval(), torch.rand(2, 3, 75, 64)
    fast = prepare_for_inference(model, precision="32", example=x)
    assert fast.report is not None and fast.report.difference is not None and fast.report.difference < 1e-5
    assert "pools before it multiplies (3x)" in str(fast.report)
    with torch.no_grad():
        for ours, theirs in zip(fast.forward_intermediates(x)[1], model.forward_intermediates(x)[1]):
            assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(("trainable", "learned"), [(1, 2_190_878), (4, 6_984_606)])
def test_the_last_blocks_can_learn_alone(trainable, learned):
    import re

    with torch.device("meta"):
        model = KimiaNet()
    pattern = model.frozen_pattern(trainable)
    names = [name for name, _ in model.named_parameters() if pattern and re.match(pattern, name)]
    frozen = sum(model.get_parameter(name).numel() for name in names)
    assert count_parameters(model) - frozen == learned
    with pytest.raises(InputError, match="give 1 to 4"):
        model.frozen_pattern(5)
