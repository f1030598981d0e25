"""The search recipe from images to page and cell, stopped and continued, and a network from the cell it found."""

from dataclasses import replace

import pytest

from paperworks.errors import InputError
from paperworks.paper import Run
from paperworks.papers import _nasnet_search as searching
from paperworks.papers.nasnet import paper
from paperworks.search.cell_space import CellSpace


def tiny(evaluations=4, top=1):
    recipe = paper.recipes["search"](evaluations=evaluations, top=top)
    config = replace(
        recipe.config,
        image_size=8,
        filters=2,
        batch=2,
        child=searching.short(2, 8),
        longer=searching.short(3, 8),
        held_out=0.02,
    )
    return replace(recipe, config=config)


def test_a_search_leaves_a_page_and_a_cell_to_train(tmp_path, monkeypatch):
    recipe = tiny()
    new = {"slug": "nasnet", "recipe": "search", "arguments": {}, "config": recipe.config, "command": "paperworks run nasnet"}
    run = Run.open(tmp_path / "run", **new)
    judged = []
    judge = searching.ShortTraining.__call__

    def stops(self, arch):
        if len(judged) == 3:
            raise KeyboardInterrupt
        judged.append(arch)
        return judge(self, arch)

    with monkeypatch.context() as patch:
        patch.setattr(searching.ShortTraining, "__call__", stops)
        with pytest.raises(KeyboardInterrupt):
            run.execute(recipe, say=lambda _: None)
    run = Run.open(tmp_path / "run", **new)
    run.execute(recipe, say=lambda _: None)
    lines = (tmp_path / "run/search/ppo.jsonl").read_text().splitlines()
    assert len(lines) == 5 and [str(list(arch)) for arch in judged] == [line[9 : line.index("]") + 1] for line in lines[1:4]]
    page = (tmp_path / "run/report.html").read_text()
    wanted = ("Reward over evaluations", "best normal cell", "best reduction cell", "trained for longer", "NASNet-A")
    assert all(words in page for words in wanted)
    found = paper.recipes["laptop"](cell=str(tmp_path / "run")).config.network
    assert set(found.arguments["genotype"]) == {"normal", "reduction"}


def test_the_best_are_trained_longer_and_the_one_that_stays_best_is_kept(tmp_path, monkeypatch):
    """Rewards turn round with longer training: the last of the three that the search liked best comes out first."""

    def judged(self, arch):
        early = (sum(number * (place + 1) for place, number in enumerate(arch)) % 997) / 997
        reward = early if self.config.steps == 2 else 1 - early
        return {"reward": reward, "loss": 0.0, "parameters": 1.0}

    monkeypatch.setattr(searching.ShortTraining, "__call__", judged)
    recipe = tiny(evaluations=12, top=3)
    run = Run.open(tmp_path / "run", slug="nasnet", recipe="search", arguments={}, config=recipe.config, command="")
    run.execute(recipe, say=lambda _: None)
    found = run.result("longer")
    assert set(found["final"]) == {"controller's best", "random search's best", "NASNet-A"}
    for name, rows in found["tried"].items():
        early = sorted(set(run.result("search")["rewards"][name]), reverse=True)[:3]
        assert [row["reward"] for row in rows] == pytest.approx([1 - reward for reward in early])
        assert found["chosen"][name] == rows[2]["arch"] != rows[0]["arch"]
    kept = searching.read_cell(str(tmp_path / "run"))
    assert kept == CellSpace().genotype(found["chosen"]["ppo"]).to_plain()
    with pytest.raises(InputError, match="top=0"):
        searching.TestBed(replace(recipe.config, top=0))


def test_a_cell_that_is_none_is_named(tmp_path):
    with pytest.raises(InputError, match="no such file of a cell"):
        paper.recipes["laptop"](cell=str(tmp_path))
    (tmp_path / "cell.json").write_text("[")
    with pytest.raises(InputError, match="is not a cell's table"):
        paper.recipes["laptop"](cell=str(tmp_path))
