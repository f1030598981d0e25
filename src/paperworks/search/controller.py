"""A recurrent controller (1707.07012, section 3.1): it makes the decisions of a space one after the other, each knowing those
before, and so defines a probability for every architecture."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.search.space import Arch, Space


class Controller(nn.Module):
    """One LSTM layer over the choices of a space; choices of one role share a softmax layer and the embedding of options.

    All weights start uniform in [-0.1, 0.1], drawn from `generator`.
    """

    allowed: Tensor

    def __init__(self, space: Space, hidden: int = 100, generator: torch.Generator | None = None):
        super().__init__()
        self.space, self.hidden = space, hidden
        counts = [len(choice.options) for choice in space.choices]
        roles = [choice.role for choice in space.choices]
        self.roles = roles
        self.places = {role: [place for place, other in enumerate(roles) if other == role] for role in dict.fromkeys(roles)}
        widest = {role: max(counts[place] for place in places) for role, places in self.places.items()}
        self.start = nn.Parameter(torch.empty(hidden))
        self.options = nn.ModuleDict({role: nn.Embedding(width, hidden) for role, width in widest.items()})
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
        self.heads = nn.ModuleDict({role: nn.Linear(hidden, width) for role, width in widest.items()})
        # a role's softmax has as many outputs as its largest choice; smaller choices use the first ones
        allowed = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        self.register_buffer("allowed", allowed, persistent=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1, generator=generator)

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> list[Arch]:
        """`count` architectures drawn from the controller."""
        taken: list[Tensor] = []
        step = self.start.expand(count, 1, -1)
        memory: tuple[Tensor, Tensor] | None = None
        for place, role in enumerate(self.roles):
            out, memory = self.lstm(step, memory)
            probabilities = self._logits(role, out[:, 0], [place]).softmax(-1)
            option = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
            taken.append(option)
            step = self.options[role](option)[:, None]
        return [self.space.check(row) for row in torch.stack(taken, 1).tolist()]

    def forward(self, archs: Sequence[Arch]) -> tuple[Tensor, Tensor]:
        """log-probability and entropy of every decision, each [N, choices]."""
        if not archs:
            raise InputError("the controller was asked about no architecture at all")
        numbers = torch.tensor(archs)
        embedded = torch.empty(*numbers.shape, self.hidden)
        for role, places in self.places.items():
            embedded[:, places] = self.options[role](numbers[:, places])
        before = torch.cat((self.start.expand(len(archs), 1, -1), embedded[:, :-1]), 1)
        out, _ = self.lstm(before)
        log_probability, entropy = torch.empty(numbers.shape), torch.empty(numbers.shape)
        for role, places in self.places.items():
            logs = self._logits(role, out[:, places], places).log_softmax(-1)
            log_probability[:, places] = logs.gather(-1, numbers[:, places, None])[..., 0]
            entropy[:, places] = -(logs.exp() * logs.masked_fill(logs.isinf(), 0.0)).sum(-1)
        return log_probability, entropy

    def _logits(self, role: str, out: Tensor, places: list[int]) -> Tensor:
        """[..., hidden] -> [..., options]; what a choice does not have is impossible."""
        logits = self.heads[role](out)
        return logits.masked_fill(~self.allowed[places, : logits.shape[-1]], -torch.inf)
