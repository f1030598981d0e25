"""Learning to propose: the controller is trained with proximal policy optimisation on the rewards of what it proposed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperworks.search.controller import Controller
from paperworks.search.space import Arch, Space


@dataclass(frozen=True)
class PPOConfig:
    """The paper's values (appendix A.1) where it prints one; a search of 20,000 children can afford its learning rate."""

    lr: float = 3.5e-4
    hidden: int = 100
    clip: float = 0.2
    """not printed by the paper: the usual width"""
    entropy_weight: float = 1e-5
    baseline_decay: float = 0.95
    updates: int = 4
    """gradient steps on each batch of rewards; not printed either"""
    clip_grad: float = 1.0


class PPOSearch:
    """Proposals of a controller that learns from their rewards.

    The baseline is a moving average of all rewards so far, divided by what its weights add up to, so that it is one from the
    first batch on.
    """

    def __init__(self, space: Space, config: PPOConfig = PPOConfig(), seed: int = 0):
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.controller = Controller(space, config.hidden, self.generator)
        self.optimizer = torch.optim.Adam(self.controller.parameters(), lr=config.lr)
        self.moving, self.told = 0.0, 0

    def ask(self, count: int) -> list[Arch]:
        return self.controller.sample(count, self.generator)

    def tell(self, archs: Sequence[Arch], rewards: Sequence[float]) -> None:
        config, values = self.config, torch.tensor(rewards, dtype=torch.float32)
        self.moving = float(moving_baselines(values, config.baseline_decay, self.moving)[-1])
        self.told += len(rewards)
        advantage = values - self.moving / (1 - config.baseline_decay**self.told)
        with torch.no_grad():
            before, _ = self.controller(archs)
        for _ in range(config.updates):
            now, entropy = self.controller(archs)
            loss = ppo_loss(now, before, advantage, entropy, config.clip, config.entropy_weight)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.controller.parameters(), config.clip_grad)
            self.optimizer.step()


def moving_baselines(rewards: Tensor, decay: float, start: float = 0.0) -> Tensor:
    """The moving average after each of the rewards [N]: decay * before + (1 - decay) * reward."""
    value, found = start, []
    for reward in rewards.tolist():
        value = decay * value + (1 - decay) * reward
        found.append(value)
    return torch.tensor(found, dtype=rewards.dtype)


def ratios(now: Tensor, before: Tensor) -> Tensor:
    """[N]: the probability of each architecture over what it was. Decisions [N, choices] as log-probabilities."""
    return (now - before).sum(1).exp()


def ppo_loss(now: Tensor, before: Tensor, advantage: Tensor, entropy: Tensor, clip: float, entropy_weight: float) -> Tensor:
    """The clipped surrogate with an entropy bonus, to be minimised. now, before, entropy [N, choices]; advantage [N]."""
    ratio = ratios(now, before)
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return -gain.mean() - entropy_weight * entropy.sum(1).mean()
