import pytest
import torch

from paperworks.backbones.adventurer import Adventurer
from paperworks.backbones.detectors import Pyramid, make_detector
from paperworks.backbones.resnet import ResNet
from paperworks.errors import InputError


def small_resnet() -> ResNet:
    return ResNet("basic", (1, 1, 1, 1), (8, 8, 16, 24), stem_width=8, stem_pool="none", num_classes=0)


def test_a_pyramid_has_the_last_maps_finest_first():
    maps = Pyramid(small_resnet(), channels=12, levels=3)(torch.rand(2, 3, 64, 96))
    assert [tuple(value.shape) for value in maps.values()] == [(2, 12, 16, 24), (2, 12, 8, 12), (2, 12, 4, 6)]
    plain = Adventurer(32, 8, 32, 3, mamba_d_state=8, headdim=16, num_classes=0)
    assert {tuple(value.shape) for value in Pyramid(plain, 12, 2)(torch.rand(1, 3, 32, 32)).values()} == {(1, 12, 4, 4)}


@pytest.mark.parametrize("kind", ["one-stage", "two-stage"])
def test_both_kinds_train_and_find_boxes_inside_the_image(kind):
    torch.manual_seed(0)
    detector = make_detector(small_resnet(), kind, 3, 64, ((8,), (16,), (32,)), channels=16)
    truth = [{"boxes": torch.tensor([[4.0, 4.0, 30.0, 40.0]]), "labels": torch.tensor([1])}] * 2
    losses = detector(list(torch.rand(2, 3, 64, 64)), truth)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in detector.backbone.fpn.parameters())
    found = detector.eval()(list(torch.rand(2, 3, 64, 64)))
    for each in found:
        assert each["boxes"].shape[1:] == (4,) and len(each["boxes"]) == len(each["scores"]) == len(each["labels"])
        assert not len(each["boxes"]) or (each["boxes"].min() >= 0 and each["boxes"].max() <= 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("three-stage", 3, 64), "no detector of kind 'three-stage'"),
        (("one-stage", 0, 64), "classes=0"),
        (("one-stage", 3, 64, ((8,), (16, 20))), "as many anchors on every map"),
        (("one-stage", 3, 64, ((8,),) * 6), "ResNet has 1 to 5"),
    ],
)
def test_impossible_detectors_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        make_detector(small_resnet(), *arguments)
