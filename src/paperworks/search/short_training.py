"""How good an architecture is, found by training it from scratch for a short while (1707.07012, section 3)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from paperworks.objectives.classify import Classify, score
from paperworks.search.space import Arch
from paperworks.training import TrainConfig, fit
from paperworks.training.seeds import mixed_seed


class ShortTraining:
    """arch -> {"reward": accuracy on held-out images, "loss": there, "parameters": of the network}.

    build: architecture -> network from images normalised to [-1, 1] to logits. train_data: a dataset of dicts with `image` and
    `label`. held_out: batches of the same, read as often as there are architectures. Initial weights and order of the images
    depend on config.seed and the architecture alone, so that a reward is the same whenever it is asked for. Trains on one
    thread: maps of a few pixels are not worth sharing out, and sums come out the same on every machine size.
    """

    def __init__(
        self,
        build: Callable[[Arch], nn.Module],
        train_data: Any,
        held_out: Sequence[dict[str, Any]],
        classes: int,
        config: TrainConfig,
    ):
        self.build, self.train_data, self.held_out = build, train_data, held_out
        self.classes, self.config = classes, config

    def __call__(self, arch: Arch) -> dict[str, float]:
        seed = mixed_seed(self.config.seed, "child", *arch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            child = Classify(self.build(arch), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        config = replace(self.config, seed=seed % 2**31, checkpoint_every=self.config.steps)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with tempfile.TemporaryDirectory() as folder:
                fit(child, self.train_data, config, folder, label="")
            child.eval()
            found = score(child.logits, self.held_out, self.classes)
        finally:
            torch.set_num_threads(threads)
        return {
            "reward": found.top1,
            "loss": found.loss,
            "parameters": float(sum(parameter.numel() for parameter in child.model.parameters())),
        }
