from __future__ import annotations

import itertools
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.compression import iterative
from paperworks.compression.iterative import CurveConfig, IterativeConfig, prune_iteratively
from paperworks.compression.sparsity import bake, kept_counts, prunable_layers, sparsity
from paperworks.training import Batch, Context, Losses, Objective, OptimizerConfig, ScheduleConfig, TrainConfig


class Stripes(torch.utils.data.Dataset):
    """Two classes of 8x8 images: stripes one way or the other, with noise."""

    def __len__(self) -> int:
        return 128

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        stripes = (torch.arange(8) % 2).float().expand(8, 8)
        image = (stripes if index % 2 else stripes.T) * 0.5 + 0.5 * torch.rand(8, 8, generator=generator)
        return {"image": image[None], "label": torch.tensor(index % 2)}


class Learn(Objective):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)
        )

    def loss(self, batch: Batch, phase: str, ctx: Context) -> Losses:
        return Losses.mean(F.cross_entropy(self.net(batch["image"]), batch["label"]), len(batch["label"]))


DATA = Stripes()
IMAGES = torch.stack([DATA[i]["image"] for i in range(64)])
LABELS = torch.tensor([i % 2 for i in range(64)])


def accuracy(network: nn.Module) -> dict[str, float]:
    network.eval()
    with torch.no_grad():
        return {"accuracy": float((network(IMAGES).argmax(1) == LABELS).float().mean())}


def config(**changes) -> IterativeConfig:
    optimizer = OptimizerConfig("adamw", lr=3e-3, schedule=ScheduleConfig("constant"))
    training = TrainConfig(steps=12, batch_size=32, optimizers={"main": optimizer}, precision="32", checkpoint_every=4)
    return IterativeConfig(**{"target": 0.8, "rate": 0.5, "finetune": training, "curves": CurveConfig(levels=21)} | changes)


def run(folder, **changes):
    objective = Learn()
    done = prune_iteratively(
        objective, objective.net, DATA, IMAGES, config(**changes), folder, evaluate=accuracy, say=lambda _: None
    )
    return objective, done


def test_reaches_the_target_in_steps_and_never_grows_back(tmp_path):
    objective, done = run(tmp_path)
    assert [i.target for i in done] == pytest.approx([0.5, 0.75, 0.8])
    assert all(i.sparsity >= i.target - 1e-9 for i in done) and sparsity(objective.net) >= 0.8
    for before, after in itertools.pairwise(done):
        assert all(after.ratios[name] >= before.ratios[name] for name in before.ratios)
    assert done[-1].tuned["accuracy"] > 0.9
    assert done[0].joint > 0 and done[0].predicted > 0 and 0 < done[-1].flops_left < done[0].flops_left < 1
    kept = kept_counts(objective.net, prunable_layers(objective.net))
    bake(objective.net)
    assert kept_counts(objective.net, prunable_layers(objective.net)) == kept


@pytest.mark.parametrize("moment", ["while fine-tuning", "after measuring", "between iterations"])
def test_a_killed_run_ends_with_the_same_weights(tmp_path, monkeypatch, moment):
    whole, _ = run(tmp_path / "whole")
    calls = {"n": 0}
    real_fit, real_write = iterative.fit, iterative._write

    def killed_fit(objective, data, training, folder, **kwargs):
        calls["n"] += 1
        if calls["n"] == 2:
            if moment == "while fine-tuning":
                kwargs["batch_transform"] = lambda batch, generator: stop_at(batch, calls)
                real_fit(objective, data, training, folder, **kwargs)
            raise KeyboardInterrupt
        return real_fit(objective, data, training, folder, **kwargs)

    def stop_at(batch, counter):
        counter["batches"] = counter.get("batches", 0) + 1
        if counter["batches"] > 6:
            raise KeyboardInterrupt
        return batch

    def killed_write(path, value):
        real_write(path, value)
        if path.name == "record.json":
            raise KeyboardInterrupt

    if moment == "between iterations":
        monkeypatch.setattr(iterative, "_write", killed_write)
    else:
        monkeypatch.setattr(iterative, "fit", killed_fit)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    monkeypatch.undo()
    resumed, done = run(tmp_path / "killed")
    assert len(done) == 3
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_finished_run_is_read_back(tmp_path, monkeypatch):
    first, done = run(tmp_path)
    monkeypatch.setattr(iterative, "fit", None)
    again, read = run(tmp_path)
    assert read == done
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())
    json.dumps([i.pruned for i in read])


@pytest.mark.parametrize("scheme", ["lamp", "uniform"])
def test_other_schemes_in_one_shot(tmp_path, scheme):
    objective, (only,) = run(tmp_path, scheme=scheme, rate=1.0, target=0.6, skip=("6",))
    assert only.predicted is None and only.sparsity == pytest.approx(0.6, abs=0.01) and only.joint > 0
    assert "6" not in only.ratios
    assert int(torch.count_nonzero(objective.net[6].weight)) == objective.net[6].weight.numel()
