"""A space of architectures: named choices with a few options each. An architecture is the number of an option per choice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from paperworks.errors import InputError

Arch = tuple[int, ...]
"""per choice of the space, in its order, the number of the option taken"""


@dataclass(frozen=True)
class Choice:
    """One decision. Choices of one role are about the same kind of thing: a controller learns them together."""

    name: str
    options: tuple[Any, ...]
    role: str

    def __post_init__(self) -> None:
        if not self.options:
            raise InputError(f"choice {self.name!r} has no options")


class Space:
    """Choices in order. A subclass says with `canonical` which architectures are the same network."""

    def __init__(self, choices: Sequence[Choice]):
        self.choices = tuple(choices)
        names = [choice.name for choice in self.choices]
        if not names or len(set(names)) < len(names):
            raise InputError("a space needs choices, each with a name of its own")

    def size(self) -> int:
        """Number of architectures; those that are the same network count each."""
        return math.prod(len(choice.options) for choice in self.choices)

    def sample(self, generator: torch.Generator) -> Arch:
        """Every option of every choice with the same probability."""
        return tuple(int(torch.randint(len(choice.options), (), generator=generator)) for choice in self.choices)

    def check(self, arch: Sequence[int]) -> Arch:
        """The architecture as a tuple; InputError names the choice that does not fit."""
        if len(arch) != len(self.choices):
            raise InputError(f"an architecture of {len(arch)} decisions; the space has {len(self.choices)} choices")
        for choice, option in zip(self.choices, arch):
            if not 0 <= option < len(choice.options):
                raise InputError(f"{choice.name}: no option {option}, there are 0 to {len(choice.options) - 1}")
        return tuple(int(option) for option in arch)

    def chosen(self, arch: Sequence[int]) -> dict[str, Any]:
        """name of a choice -> its option."""
        return {choice.name: choice.options[option] for choice, option in zip(self.choices, self.check(arch))}

    def canonical(self, arch: Arch) -> Arch:
        """The representative of all architectures that are the same network."""
        return arch

    def describe(self) -> list[list[Any]]:
        """JSON-ready: two spaces with the same description take the same architectures."""
        return [[choice.name, len(choice.options)] for choice in self.choices]
