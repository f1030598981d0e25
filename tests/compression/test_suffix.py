"""Suffix runs must equal full runs bit for bit, whatever a module does inside its forward."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from paperworks.compression.sparsity import effective_weight, prunable_layers
from paperworks.compression.suffix import SuffixRunner, first_tensor
from paperworks.errors import InputError


class Awkward(nn.Module):
    """A module used twice, in-place operations, attention that reads a child's weight without calling it, an unused layer,
    a dict as output, and a loop over the data's size (which no tracer likes)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.twice = nn.Sequential(nn.Linear(16, 16), nn.ReLU(inplace=True), nn.Linear(16, 16))
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
        self.unused = nn.Linear(3, 3)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(x.shape[1] % 3 + 1):
            x = self.twice(x)
            x += 1
        return {"logits": self.head(torch.relu_(self.encoder(x)).mean(1))}


NETS = {
    "awkward": lambda: (Awkward(), torch.randn(4, 7, 8)),
    "resnet18": lambda: (timm.create_model("resnet18", num_classes=7), torch.randn(2, 3, 40, 40)),
    "inception_next": lambda: (
        timm.create_model("inception_next_tiny", num_classes=5, depths=(1, 1, 1, 1), dims=(16, 24, 32, 40)),
        torch.randn(2, 3, 64, 64),
    ),
    "vit": lambda: (
        timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=48, num_heads=3, num_classes=5),
        torch.randn(2, 3, 32, 32),
    ),
    "dense_blocks": lambda: (
        timm.create_model("densenet121", growth_rate=4, block_config=(2, 2, 2, 2), num_classes=5),
        torch.randn(2, 3, 48, 48),
    ),
    "mobile": lambda: (timm.create_model("mobilenetv3_small_050", num_classes=5), torch.randn(2, 3, 48, 48)),
}


@pytest.mark.parametrize("name", NETS)
def test_equals_full_runs_exactly(name):
    torch.manual_seed(0)
    model, images = NETS[name]()
    plain = copy.deepcopy(model.eval())
    layers = prunable_layers(model)
    runner = SuffixRunner(model, images[:2])
    for layer in runner.in_call_order(layers):
        with torch.no_grad():
            assert torch.equal(runner.enter(layer, images), first_tensor(plain(images)))
            weight, theirs = effective_weight(model, layer), effective_weight(plain, layer)
            before = weight.clone()
            weight.mul_(torch.rand_like(weight) > 0.6)
            theirs.copy_(weight)
            assert torch.equal(runner(images), first_tensor(plain(images))), layer.name
            assert torch.equal(runner(images), first_tensor(plain(images))), "a second run from the same prefix"
            weight.copy_(before)
            theirs.copy_(before)
        assert runner.agrees(layer, images[:2])


def test_only_the_suffix_is_computed():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    computed = []
    for i, linear in enumerate(model):
        linear.register_forward_pre_hook(lambda _, args, i=i: computed.append(i) if isinstance(args[0], torch.Tensor) else None)
        linear.forward = lambda x, linear=linear, i=i: (computed.append(10 + i), nn.functional.linear(x, linear.weight))[1]
    runner, images = SuffixRunner(model, torch.ones(1, 4)), torch.ones(2, 4)
    runner.enter(prunable_layers(model)[4], images)
    computed.clear()
    runner(images)
    assert [i for i in computed if i >= 10] == [14, 15]


def test_layers_may_be_entered_in_any_order():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    plain, images = copy.deepcopy(model), torch.randn(2, 4)
    runner, layers = SuffixRunner(model, images), prunable_layers(model)
    for i in (3, 1, 2, 0):
        assert torch.equal(runner.enter(layers[i], images), plain(images).detach())
        assert torch.equal(runner(images), plain(images).detach())
    with pytest.raises(ValueError, match="enter"):
        runner(torch.randn(2, 4))


def test_a_weight_used_before_its_module_is_noticed():
    class Early(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.b(self.a(x @ self.b.weight))

    model = Early()
    runner = SuffixRunner(model, torch.randn(2, 4))
    early = next(layer for layer in prunable_layers(model) if layer.name == "b")
    assert not runner.agrees(early, torch.randn(2, 4))


def test_outputs_without_a_tensor_ask_for_a_readout():
    with pytest.raises(InputError, match="readout="):
        first_tensor(3.0)
    assert torch.equal(first_tensor({"a": torch.ones(1)}), torch.ones(1))
    assert torch.equal(first_tensor((torch.ones(1), 2)), torch.ones(1))
