from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from paperworks.compression.sparsity import (
    bake,
    baked_copy,
    current_masks,
    effective_weight,
    from_torch_prune,
    kept_counts,
    mask_zeros,
    plain_state_dict,
    prunable_layers,
    remove_masks,
    set_masks,
    smallest_removed,
    sparsity,
)
from paperworks.errors import InputError


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


def random_masks(model: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {layer.name: torch.rand(layer.shape, generator=generator) > 0.5 for layer in prunable_layers(model)}


def test_every_conv_and_linear_weight_in_module_order():
    layers = prunable_layers(small_net())
    assert [(layer.name, layer.numel) for layer in layers] == [("0", 108), ("4", 720)]
    assert [layer.name for layer in prunable_layers(small_net(), skip=["^4$"])] == ["0"]


def test_shared_weights_count_once_and_stay_shared():
    model = Tied()
    (layer,) = prunable_layers(model)
    assert layer.owners == ("first", "second") and layer.numel == 16
    set_masks(model, random_masks(model))
    assert prunable_layers(model) == [layer]
    plain = baked_copy(model)
    assert plain.first.weight is plain.second.weight
    assert torch.equal(plain(torch.ones(1, 4)), model(torch.ones(1, 4)))


@pytest.mark.parametrize(("model", "skip"), [(nn.Sequential(nn.ReLU()), []), (small_net(), [""])])
def test_nothing_to_prune_is_an_error(model, skip):
    with pytest.raises(InputError, match="no prunable layer"):
        prunable_layers(model, skip)


def test_masking_then_unmasking_leaves_no_trace():
    model, x = small_net().eval(), torch.randn(2, 3, 8, 8)
    before, keys = model(x), list(model.state_dict())
    set_masks(model, random_masks(model))
    assert not torch.equal(model(x), before)
    remove_masks(model)
    assert torch.equal(model(x), before)
    assert sorted(model.state_dict()) == sorted(keys) and type(model[0]) is nn.Conv2d


def test_a_copy_can_be_unmasked_without_touching_the_original():
    model, x = small_net().eval(), torch.randn(2, 3, 8, 8)
    set_masks(model, random_masks(model))
    masked = model(x)
    twin = copy.deepcopy(model)
    remove_masks(twin)
    plain = baked_copy(model)
    assert torch.equal(model(x), masked) and torch.equal(plain(x), masked) and not torch.equal(twin(x), masked)


def test_the_plain_state_dict_is_an_ordinary_one_and_masks_come_back_from_its_zeros():
    model, x = small_net().eval(), torch.randn(2, 3, 8, 8)
    set_masks(model, random_masks(model))
    reader = small_net().eval()
    reader.load_state_dict(plain_state_dict(model))
    assert torch.equal(reader(x), model(x))
    mask_zeros(reader)
    layers = prunable_layers(reader)
    masks = current_masks(model, layers)
    assert all(torch.equal(mask, masks[name]) for name, mask in current_masks(reader, layers).items())


def test_training_never_revives_a_masked_weight():
    model, x = small_net(), torch.randn(8, 3, 8, 8)
    set_masks(model, random_masks(model))
    layers = prunable_layers(model)
    kept = kept_counts(model, layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert kept_counts(model, layers) == kept
    bake(model)
    assert kept_counts(model, layers) == kept and type(model[0]) is nn.Conv2d


def test_masks_only_shrink():
    weight = torch.tensor([0.0, 5.0, 1.0, 3.0])
    keep = torch.tensor([True, False, True, True])
    assert smallest_removed(weight, keep, 2).tolist() == [False, False, True, True]
    assert smallest_removed(weight, keep, 0).tolist() == keep.tolist()


def test_checkpoints_of_torch_prune_are_read():
    model, plain = small_net(), small_net()
    torch_prune.l1_unstructured(model[0], "weight", amount=0.5)
    plain.load_state_dict(from_torch_prune(model.state_dict()))
    assert torch.equal(plain[0].weight, model[0].weight) and torch.equal(plain[4].weight, model[4].weight)
    assert sparsity(plain) == pytest.approx(54 / 828)
    with pytest.raises(InputError, match=r"0\.weight_orig but no"):
        from_torch_prune({"0.weight_orig": torch.ones(2)})


def test_wrong_masks_are_named():
    with pytest.raises(InputError, match="no prunable layer"):
        set_masks(small_net(), {"7": torch.ones(3)})
    with pytest.raises(InputError, match=r"mask of 4 has shape \(3,\)"):
        set_masks(small_net(), {"4": torch.ones(3)})


def test_weights_are_shared_not_copied_by_reading():
    model = small_net()
    assert effective_weight(model, prunable_layers(model)[0]).data_ptr() == model[0].weight.data_ptr()
