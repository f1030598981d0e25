"""ResFormer's paper: equal image passes, test sizes, a page with both curves, and settings that are refused."""

import pytest
import torch

from paperworks.data import ImageSource
from paperworks.data.transforms import train_crop
from paperworks.errors import InputError
from paperworks.objectives.multi_resolution import MultiResolution
from paperworks.papers import _resformer_claims as measure
from paperworks.papers._classification import AugmentConfig
from paperworks.papers._resformer_training import curve_sizes, fit_sizes, plain_vit
from paperworks.papers.resformer import paper
from paperworks.training import TrainConfig


def test_sizes_of_the_curve_go_from_0_4_to_3_times_in_whole_patches():
    assert curve_sizes(32, 4) == [12, 16, 20, 24, 28, 32, 40, 48, 64, 80, 96]
    assert curve_sizes(224, 16)[0] == 96 and curve_sizes(224, 16)[-1] == 672
    assert all(size % 16 == 0 for size in curve_sizes(224, 16))


def test_the_plain_network_sees_as_many_images_in_as_many_steps(tmp_path):
    images = torch.randint(0, 256, (6, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = ImageSource.from_tensor(images, torch.arange(6) % 2, name="noise")
    seen: dict[str, list[int]] = {}
    for name, sizes in (("ours", (16, 12, 8)), ("plain", (16,))):
        torch.manual_seed(0)
        network = plain_vit({"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2}, 16, 2)
        rows: list[int] = []
        network.patch_embed.register_forward_hook(lambda module, given, out, rows=rows: rows.append(len(given[0])))
        objective = MultiResolution(network, sizes, consistency="none")
        training = TrainConfig(2, 8, checkpoint_every=2)  # more than there are images: a batch is all of them
        augment = AugmentConfig("crop", mixup=0.0, cutmix=0.0)
        fit_sizes(objective, source, augment, train_crop, training, tmp_path / name, passes=3, label="")
        seen[name] = rows
    assert seen == {"ours": [6] * 6, "plain": [18] * 2}


def test_ablations_lack_one_kind_of_positions():
    with torch.no_grad():
        full, bare = (measure.build(name, 10).eval() for name in ("ResFormer", "no global positions"))
        assert full.pos_embed((2, 2)).shape == (1, 4, 64) and bare(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    frozen = [name for name, p in measure.build("no local positions", 10).named_parameters() if not p.requires_grad]
    assert len(frozen) == 8 and all("get_v" in name for name in frozen)


def test_bad_settings_are_named_before_anything_runs():
    laptop = paper.recipes["laptop"]
    with pytest.raises(InputError, match="must fall"):
        laptop(sizes=(16, 32))
    with pytest.raises(InputError, match="multiple of the patch"):
        laptop(sizes=(32, 30))
    with pytest.raises(InputError, match="weight of 0 or more"):
        laptop(consistency=-1.0)
    with pytest.raises(InputError, match="did you mean"):
        paper.recipes["paper"](variant="resformer_smal_patch16")
    with pytest.raises(InputError, match="--consistency 0"):
        laptop(sizes=(32,))
    assert laptop(sizes=(32,), consistency=0.0).config.image_size == 32
    assert laptop(sizes=(128, 96, 64)).config.network.arguments["patch_size"] == 8
