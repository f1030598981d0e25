"""Run only what comes after a layer: the outputs of everything that finished before it are recorded once and played back.

Works on any nn.Module without tracing it. A trial run records when each module call starts and ends. For a layer that is
about to be changed, the calls that had ended when it was first called, and whose caller was still running, form its prefix:
their outputs cannot depend on the layer, so on later runs those calls return a recorded output instead of computing.
Whatever encloses the layer, and everything after it, runs as always. The result equals a full run bit for bit.

    runner = SuffixRunner(model, example_images)
    for layer in runner.in_call_order(layers):
        logits = runner.enter(layer, images)   # records the prefix (itself by playing back the previous layer's)
        ...                                    # change the layer's weight in place
        changed = runner(images)               # costs only the suffix
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from paperworks.compression.sparsity import PrunableLayer, effective_weight
from paperworks.errors import InputError

_Key = tuple[str, int]
"""a module's path and how many times it had been called before in the same run"""


@dataclass
class _Call:
    key: _Key
    start: int
    parent: _Call | None
    end: float = math.inf
    children: list[_Call] = field(default_factory=list)

    def inside(self) -> Iterator[_Call]:
        for child in self.children:
            yield child
            yield from child.inside()


class _Unread:
    """Stands for an output that nothing reads: all but the last finished member of a Sequential."""


@dataclass
class _Recording:
    """An output played back. What follows may change it in place, so the first time a copy is lent and watched by its version
    counter; outputs that stay as they are, nearly all, are lent without copying from then on."""

    output: Any
    changed_in_place: bool | None = None


class SuffixRunner:
    """Owns a model in eval mode (give it a copy: its modules' `forward` is wrapped) and runs it with a played-back prefix."""

    def __init__(self, model: nn.Module, example: Tensor, readout: Callable[[Any], Tensor] | None = None):
        """example: a small batch for the trial run. readout: picks the logits out of the model's output."""
        self.model = model.eval()
        self.readout = readout or first_tensor
        self._modules = dict(model.named_modules())
        self._root = _Call(("", 0), 0, None)
        self._calls: dict[_Key, _Call] = {}
        self._running = [self._root]
        self._clock = 0
        self._seen: dict[str, int] = {}
        self._played: dict[_Key, Any] = {}
        self._lent: list[tuple[_Recording, Any]] = []
        self._played_for: tuple[float, Tensor | None] = (0, None)
        self._wanted: set[_Key] = set()
        self._recorded: dict[_Key, _Recording] = {}
        for path, module in self._modules.items():
            if path:
                module.forward = self._wrap(path, module.forward)
        self._tracing = True
        self.full(example)
        self._tracing = False

    @torch.no_grad()
    def full(self, images: Tensor) -> Tensor:
        """The logits [N, ...] by an ordinary run."""
        played, self._played = self._played, {}
        try:
            return self._run(images)
        finally:
            self._played = played

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The logits by running only the suffix of the layer entered last; `images` must be those it was entered with."""
        if self._played_for[1] is not images:
            raise ValueError("enter() the layer with these images first")
        return self._run(images)

    def in_call_order(self, layers: Sequence[PrunableLayer]) -> list[PrunableLayer]:
        """The layers by their first use: prefixes then only grow from one layer to the next."""
        return sorted(layers, key=lambda layer: self._start_of(layer).start)

    @torch.no_grad()
    def enter(self, layer: PrunableLayer, images: Tensor) -> Tensor:
        """Record the layer's prefix for these images; returns the logits of the network as it is."""
        start = self._start_of(layer)
        reached, entered_with = self._played_for
        if entered_with is not images or start.start < reached:
            self._played = {}
        self._wanted, unread = self._prefix(start)
        self._recorded = {}
        logits = self._run(images)
        self._played = dict.fromkeys(unread, _Unread) | self._recorded
        self._played_for = (start.start, images)
        self._wanted = set()
        return logits

    @torch.no_grad()
    def agrees(self, layer: PrunableLayer, images: Tensor) -> bool:
        """Whether a suffix run gives what a full run gives when every other weight of the layer is zeroed (an unusual network
        may use a weight before the module that owns it is called). Tried on a few images before a layer is measured."""
        self.enter(layer, images)
        weight = effective_weight(self.model, layer)
        before = weight.clone()
        weight.mul_(torch.arange(layer.numel, device=weight.device).view(layer.shape) % 2)
        short, whole = self(images), self.full(images)
        weight.copy_(before)
        scale = float(whole.nan_to_num(posinf=0, neginf=0).abs().max())
        return torch.allclose(short, whole, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)

    def _start_of(self, layer: PrunableLayer) -> _Call:
        """The call with which the layer first enters the computation.

        A module that is never called may still have its weight read by one that encloses it (multi-head attention does
        that): then it is the first call of the nearest enclosing module, in the end the whole network.
        """
        starts = []
        for path in layer.owners:
            while path and (path, 0) not in self._calls:
                path = path.rpartition(".")[0]
            starts.append(self._calls.get((path, 0), self._root))
        return min(starts, key=lambda call: call.start)

    def _prefix(self, start: _Call) -> tuple[set[_Key], set[_Key]]:
        """Keys of the calls to record, and of those whose output nobody reads any more."""
        wanted: set[_Key] = set()
        unread: set[_Key] = set()
        parent = start.parent
        while parent is not None:
            ended = [child.key for child in parent.children if child.end < start.start]
            if ended and type(self._modules[parent.key[0]]).forward is nn.Sequential.forward:
                unread.update(ended[:-1])
                ended = ended[-1:]
            wanted.update(ended)
            parent = parent.parent
        return wanted, unread

    def _run(self, images: Tensor) -> Tensor:
        self._seen, self._lent = {}, []
        logits = self.readout(self.model(images)).detach()
        for recording, lent in self._lent:
            changed = any(leaf._version > 0 for leaf in tree_leaves(lent) if isinstance(leaf, Tensor))
            if changed and recording.changed_in_place is False:
                raise RuntimeError("a layer's output was changed in place in one run and not in another")
            recording.changed_in_place = changed or recording.changed_in_place is True
        return logits

    def _wrap(self, path: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            key = (path, self._count(path))
            if key in self._played:
                return self._playback(key)
            output = self._traced(key, forward, args, kwargs) if self._tracing else forward(*args, **kwargs)
            if key in self._wanted:
                self._recorded[key] = _Recording(_copy(output))
            return output

        return wrapped

    def _playback(self, key: _Key) -> Any:
        for call in self._calls[key].inside():
            self._count(call.key[0])
        recording = self._played[key]
        if recording is _Unread:
            return recording
        if key in self._wanted:
            self._recorded[key] = recording
        output = recording.output if recording.changed_in_place is False else _copy(recording.output)
        self._lent.append((recording, output))
        return output

    def _count(self, path: str) -> int:
        self._seen[path] = self._seen.get(path, 0) + 1
        return self._seen[path] - 1

    def _traced(self, key: _Key, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._clock += 1
        call = self._calls[key] = _Call(key, self._clock, self._running[-1])
        self._running[-1].children.append(call)
        self._running.append(call)
        output = forward(*args, **kwargs)
        self._running.pop()
        self._clock += 1
        call.end = self._clock
        return output


def first_tensor(output: Any) -> Tensor:
    """A model's output as logits: itself, its `logits`, or the first entry of a tuple or dict."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if isinstance(output, dict) and output:
        return first_tensor(next(iter(output.values())))
    if isinstance(output, tuple | list) and output:
        return first_tensor(output[0])
    raise InputError(f"the network returned {type(output).__name__}; pass readout= to say where its logits are")


def _copy(output: Any) -> Any:
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, output)
