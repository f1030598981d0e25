"""Searches: an archive that survives being killed, a controller that is a distribution and learns, and random search."""

import itertools

import pytest
import torch

from paperworks.errors import InputError
from paperworks.search.archive import Archive
from paperworks.search.cell_space import CellSpace
from paperworks.search.controller import Controller
from paperworks.search.ppo import PPOConfig, PPOSearch, moving_baselines
from paperworks.search.searcher import RandomSearch, search
from paperworks.search.space import Choice, Space

SPACE = Space([Choice("a", (1, 2, 3), "number"), Choice("b", ("x", "y"), "letter"), Choice("c", (1, 2), "number")])


def every() -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(len(choice.options)) for choice in SPACE.choices)))


def test_the_controller_is_a_distribution_over_the_space():
    controller = Controller(SPACE, hidden=8, generator=torch.Generator().manual_seed(0))
    logs, entropy = (values.detach() for values in controller(every()))
    assert logs.shape == entropy.shape == (12, 3)
    assert float(logs.sum(1).exp().sum()) == pytest.approx(1.0, abs=1e-5)
    first = logs[::4, 0]
    assert float(entropy[0, 0]) == pytest.approx(float(-(first.exp() * first).sum()), abs=1e-5)
    drawn = controller.sample(4000, torch.Generator().manual_seed(1))
    shares = torch.tensor([drawn.count(arch) / 4000 for arch in every()])
    assert torch.allclose(shares, logs.sum(1).exp(), atol=0.03)
    weights = torch.cat([parameter.flatten() for parameter in controller.parameters()])
    assert float(weights.detach().abs().max()) <= 0.1


def test_every_parameter_of_the_controller_learns():
    controller = Controller(SPACE, hidden=8, generator=torch.Generator().manual_seed(0))
    logs, entropy = controller(every())
    (logs.sum() + entropy.sum()).backward()
    assert all(parameter.grad is not None for parameter in controller.parameters())


def additive(space: Space, seed: int):
    """A reward without noise: every decision is worth something of its own."""
    generator = torch.Generator().manual_seed(seed)
    shared: dict[str, torch.Tensor] = {}
    tables = []
    for choice in space.choices:
        table = torch.rand(len(choice.options), generator=generator)
        tables.append(table if choice.role == "state" else shared.setdefault(choice.role, table))
    return lambda arch: {"reward": float(sum(table[i] for table, i in zip(tables, arch))) / len(arch)}


def test_the_controller_beats_random_search_by_far(tmp_path):
    space = CellSpace(3)
    space.canonical = lambda arch: arch  # here a network's reward depends on how its decisions are written down
    reward = additive(space, 0)
    ends = {}
    for name, searcher in (("ppo", PPOSearch(space, PPOConfig(lr=1e-2), 0)), ("random", RandomSearch(space, 0))):
        found = search(searcher, reward, Archive(tmp_path / f"{name}.jsonl", space), 200)
        ends[name] = sum(record.reward for record in found[-20:]) / 20
    assert ends["ppo"] > ends["random"] + 0.15


def test_a_killed_search_goes_on_as_if_it_had_not_been(tmp_path):
    reward, seen = additive(SPACE, 0), []

    def counted(arch):
        seen.append(arch)
        return reward(arch) | {"loss": 1.0}

    def stops(arch):
        if len(seen) == 4:
            raise KeyboardInterrupt
        return counted(arch)

    def run(path, evaluate):
        return search(PPOSearch(SPACE, PPOConfig(hidden=8), 3), evaluate, Archive(path, SPACE), 12, batch=3)

    whole = run(tmp_path / "whole.jsonl", counted)
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut.jsonl", stops)
    with (tmp_path / "cut.jsonl").open("a") as file:
        file.write('{"arch": [0, 1')  # the power failed within a line
    again = run(tmp_path / "cut.jsonl", counted)
    assert [(r.arch, r.reward, r.metrics) for r in again] == [(r.arch, r.reward, r.metrics) for r in whole]
    assert len(seen) == len(set(seen))  # nothing was evaluated twice
    archive = Archive(tmp_path / "cut.jsonl", SPACE)
    assert len(archive) == len(seen) and archive.best()[0].reward == max(r.reward for r in whole)


def test_an_archive_of_something_else_is_refused(tmp_path):
    Archive(tmp_path / "a.jsonl", SPACE, key={"steps": 1})
    with pytest.raises(InputError, match="another space or budget"):
        Archive(tmp_path / "a.jsonl", SPACE, key={"steps": 2})
    with pytest.raises(InputError, match="another space or budget"):
        Archive(tmp_path / "a.jsonl", CellSpace(1), key={"steps": 1})
    with pytest.raises(InputError, match="at least 1 of each"):
        search(RandomSearch(SPACE), lambda arch: {"reward": 0.0}, Archive(tmp_path / "b.jsonl", SPACE), 0)


def test_the_baseline_moves_slowly():
    assert moving_baselines(torch.tensor([1.0, 0.0]), 0.95).tolist() == pytest.approx([0.05, 0.0475])
