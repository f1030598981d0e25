"""Training over several sizes: the chain of sizes, the distances, one draw of mixing for all, what is refused."""

from itertools import pairwise

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

from paperworks.backbones.registry import create
from paperworks.backbones.resformer import ResFormer
from paperworks.data import Mix
from paperworks.errors import InputError
from paperworks.objectives.multi_resolution import DISTANCES, MixSizes, MultiResolution, check_sizes
from paperworks.training import Context

SIZES = (32, 24, 16)


def context(step: int = 0) -> Context:
    return Context(step=step, max_steps=9, seed=0)


def network() -> ResFormer:
    torch.manual_seed(0)
    return ResFormer(8, 16, 2, 2, num_classes=3)


def batch(count: int = 4) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    images = {f"image{size}" if size < 32 else "image": torch.rand(count, 3, size, size) for size in SIZES}
    return images | {"label": torch.arange(count) % 3}


def test_each_size_learns_from_the_next_larger_one():
    model, given = network(), batch()
    objective = MultiResolution(model, SIZES, weight=0.5)
    losses = objective.loss(given, "main", context())
    tokens = [model.forward_features(objective.normalise(given[key])) for key in ("image", "image24", "image16")]
    expected = torch.stack([F.cross_entropy(model.forward_head(each), given["label"]) for each in tokens]).mean()
    for larger, smaller in pairwise(tokens):
        teacher = F.layer_norm(larger[:, 0], (16,), eps=1e-6)
        expected = expected + 0.5 / 3 * F.smooth_l1_loss(smaller[:, 0], teacher)
    assert losses.total.item() / 4 == pytest.approx(expected.item(), rel=1e-5)
    assert losses.count == 4 and set(losses.logs) == {"loss", "accuracy", "consistency", "loss32", "loss24", "loss16"}


def test_the_teacher_is_not_pulled():
    student, teacher = torch.randn(2, 8, requires_grad=True), torch.randn(2, 8, requires_grad=True)
    for distance in DISTANCES.values():
        assert distance(student, teacher).item() > 0
    objective = MultiResolution(network(), SIZES[:2])
    passed: list[torch.Tensor] = []
    objective.compared = lambda features, logits: passed.append(features[:, 0].detach().requires_grad_()) or passed[-1]
    losses, _, _ = objective.size_losses([torch.rand(2, 3, 32, 32), torch.rand(2, 3, 24, 24)], [torch.tensor([0, 1])] * 2)
    (losses[0] + losses[1]).backward()
    assert passed[0].grad is None and passed[1].grad is not None


def test_a_size_without_images_of_its_own_is_resized():
    objective = MultiResolution(network(), SIZES)
    given = batch()
    whole = {"image": given["image"], "label": given["label"]}
    small = F.interpolate(given["image"], (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(objective.images(whole, 16), small)
    assert torch.equal(objective.images(given, 16), given["image16"])


def test_a_window_moves_over_the_sizes():
    objective = MultiResolution(network(), SIZES, window=2)
    assert [objective.sizes_at(step) for step in range(3)] == [(32, 24), (24, 16), (32, 24)]
    assert "loss16" in objective.loss(batch(), "main", context(step=1)).logs


@pytest.mark.parametrize(("compare", "width"), [("cls", 16), ("gap", 16), ("logits", 3)])
def test_what_is_compared(compare, width):
    objective = MultiResolution(network(), SIZES, compare=compare, consistency="cosine")
    features = objective.model.forward_features(torch.rand(2, 3, 16, 16))
    found = objective.compared(features, objective.model.forward_head(features))
    assert found.shape == (2, width)
    if compare == "gap":
        assert torch.allclose(found, features[:, 1:].mean(1))


def test_a_class_token_that_comes_last_is_found():
    model = create("adventurer_tiny_patch16_224", embed_dim=16, depth=1, headdim=8, patch_size=8, num_classes=3)
    features = model.forward_features(torch.rand(2, 3, 32, 32))
    logits = model.forward_head(features)
    assert torch.equal(MultiResolution(model, SIZES).compared(features, logits), features[:, -1])
    gap = MultiResolution(model, SIZES, compare="gap").compared(features, logits)
    assert torch.allclose(gap, features[:, :-1].mean(1))


def test_any_network_of_timm_s_protocol_can_be_trained():
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3, dynamic_img_size=True)
    assert torch.isfinite(MultiResolution(vit, SIZES).loss(batch(), "main", context()).total)
    conv = create("vovnet27_slim", stem_chs=(4, 4, 8), stage_conv_chs=(4,) * 4, stage_out_chs=(8,) * 4, num_classes=3)
    sizes = (64, 32)
    given = {"image": torch.rand(2, 3, 64, 64), "label": torch.tensor([0, 1])}
    assert torch.isfinite(MultiResolution(conv, sizes, compare="gap").loss(given, "main", context()).total)
    with pytest.raises(InputError, match="no class token"):
        MultiResolution(conv, sizes).loss(given, "main", context())


def test_mixing_is_the_same_at_every_size():
    generator = torch.Generator().manual_seed(3)
    given = batch()
    for alphas in ((1.0, 0.0), (0.0, 1.0)):
        mixed = MixSizes(Mix(3, *alphas, 1.0, 0.5, 0.0))(given, generator)
        assert torch.allclose(mixed["target"], mixed["target16"], atol=0.15 if alphas[1] else 1e-6)
    apart = MixSizes(Mix(3, 1.0, 0.0, 1.0, 0.5, 0.0), separate=True)(given, generator)
    assert not torch.allclose(apart["target"], apart["target16"])
    losses = MultiResolution(network(), SIZES).loss(mixed, "main", context())
    assert torch.isfinite(losses.total)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sizes": (16, 32)}, "must fall"),
        ({"sizes": (32, 32)}, "must fall"),
        ({"sizes": (32, 20)}, "multiple of the patch, 8"),
        ({"sizes": ()}, "empty"),
        ({"sizes": (32,)}, "consistency='none'"),
        ({"window": 1}, "consistency='none'"),
        ({"window": 4}, "1 to 3"),
        ({"consistency": "kl"}, "smooth_l1, cosine, l2 and none"),
        ({"compare": "patch"}, "'cls', 'gap'"),
        ({"smoothing": 1.0}, "share below 1"),
    ],
)
def test_bad_settings_are_named(arguments, words):
    with pytest.raises(InputError, match=words):
        MultiResolution(network(), **{"sizes": SIZES, **arguments})


def test_one_size_is_plain_classification():
    objective = MultiResolution(network(), (32,), consistency="none", smoothing=0.1)
    given = batch()
    expected = F.cross_entropy(objective.logits(given["image"]), given["label"], label_smoothing=0.1)
    assert objective.loss(given, "main", context()).total.item() / 4 == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(InputError, match="labels='required'"):
        objective.loss({"image": given["image"]}, "main", context())
    assert check_sizes([64, 48], 16) == (64, 48) and isinstance(objective.model, nn.Module)
