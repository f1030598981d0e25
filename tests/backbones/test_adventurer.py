"""Adventurer: order of tokens, flips, sizes, the authors' files."""

import pytest
import torch

from paperworks.backbones.adventurer import Adventurer, flipped_layers, mixed, turn_patches
from paperworks.backbones.registry import create
from paperworks.errors import InputError
from paperworks.layers.mamba2 import Mamba2
from tests.backbones.family import small

NAME = "adventurer_tiny_patch16_224"


def test_only_the_third_and_fourth_block_turn_patches_around_in_released_networks():
    assert flipped_layers("official", 6) == [False, False, True, True, False, False]
    assert flipped_layers("alternate", 4) == [False, True, False, True] and not any(flipped_layers("never", 3))
    tokens = torch.arange(4.0).view(1, 4, 1)
    assert turn_patches(tokens).flatten().tolist() == [2, 1, 0, 3]
    with pytest.raises(InputError, match="before a class token"):
        turn_patches(tokens[:, :1])
    with pytest.raises(InputError, match="alternate"):
        Adventurer(flip="sometimes")


def test_the_mixer_sees_the_mean_first_and_then_only_what_came_before():
    seen = []

    def mixer(h):
        seen.append(h)
        return h

    h = torch.rand(1, 5, 3)
    assert torch.equal(mixed(mixer, h, flip=False), h) and torch.equal(mixed(mixer, h, flip=True), h)
    assert torch.allclose(seen[0][:, 0], h.mean(1)) and torch.equal(seen[1][:, 1:], turn_patches(h))
    torch.manual_seed(0)
    layer = Mamba2(8, state=4, head_dim=4)
    x = torch.rand(1, 70, 8)
    other = x.clone()
    other[:, 50:] = 0
    with torch.no_grad():
        assert torch.allclose(layer(x)[:, :50], layer(other)[:, :50], atol=1e-6)
        assert not torch.allclose(layer(x)[:, 50:], layer(other)[:, 50:], atol=1e-3)


def test_positions_are_stretched_and_the_class_tokens_row_stays():
    model = small(NAME)
    weights = model.state_dict()
    larger = Adventurer.from_official(
        weights, img_size=24, patch_size=1, embed_dim=16, depth=3, mamba_d_state=8, headdim=16, num_classes=5
    )
    assert torch.equal(larger.pos_embed[:, -1], model.pos_embed[:, -1]) and larger.pos_embed.shape[1] == 24 * 24 + 1
    x = torch.rand(1, 3, 24, 24)
    with torch.no_grad():
        assert torch.allclose(larger.eval()(x), model(x), atol=1e-5)


def test_the_authors_names_load():
    model = small(NAME)
    theirs = {
        key.replace("mlp.gate", "mlp.w1").replace("mlp.fc1", "mlp.w2").replace("mlp.fc2", "mlp.w3"): value
        for key, value in model.state_dict().items()
    }
    again = Adventurer.from_official(
        theirs, img_size=16, patch_size=1, embed_dim=16, depth=3, mamba_d_state=8, headdim=16, num_classes=5, rms_norm=True
    )
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())


def test_a_pixel_each_makes_50176_tokens():
    with torch.device("meta"):
        model = create("adventurer_base_patch1_224")
    assert model.pos_embed.shape == (1, 224 * 224 + 1, 768)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"img_size": 30, "patch_size": 16}, "divide the image"),
        ({"embed_dim": 48, "headdim": 64}, "does not divide 96"),
        ({"patch_size": 0}, "divide the image"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(InputError, match=words):
        Adventurer(**arguments)


def test_images_that_patches_do_not_divide():
    model = Adventurer(img_size=16, patch_size=4, embed_dim=16, depth=1, headdim=16)
    assert model(torch.rand(1, 3, 8, 20)).shape == (1, 1000)
    with pytest.raises(InputError, match="does not divide into patches of 4"):
        model(torch.rand(1, 3, 16, 18))
