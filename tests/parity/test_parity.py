"""Replays every recorded case of the reference implementations through our parts and compares all its outputs.

`PAPERWORKS_PARITY=DIR pytest tests/parity -k inceptionnext`; `PAPERWORKS_RECORD=1` stores the outcome in results/parity.json.
A paper's replay is `tests/parity/replay/<slug>.py` (underscores for hyphens) with `replay(case) -> dict[str, Tensor]` and,
where the default does not fit, `TOLERANCE`: a pair (relative, absolute) or a function of the case that returns one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.parity.case import DEFAULT_TOLERANCE, Case, compare, find_cases, parity_folder

FOLDER = parity_folder()
REPLAYS = Path(__file__).parent / "replay"
CASES = find_cases(FOLDER) or [
    pytest.param(
        None,
        id="none",
        marks=pytest.mark.skip(reason=f"no parity cases below {FOLDER} (PAPERWORKS_PARITY names another folder)"),
    )
]


def _name(path: Path | None) -> str | None:
    return f"{path.parent.name}/{path.stem}" if path else None


@pytest.mark.parametrize("path", CASES, ids=_name)
def test_parity(path: Path, record_property: Callable[[str, object], None]) -> None:
    slug = path.parent.name
    module = slug.replace("-", "_")
    if not (REPLAYS / f"{module}.py").is_file():
        pytest.skip(f"{slug}: no replay yet")
    case = Case.load(path)
    replay = importlib.import_module(f"tests.parity.replay.{module}")
    tolerance = getattr(replay, "TOLERANCE", DEFAULT_TOLERANCE)
    with torch.random.fork_rng(devices=[]):
        ours = replay.replay(case)
    result = compare(ours, case.outputs, tolerance(case) if callable(tolerance) else tolerance)
    print(f"{slug} {case.name}: worst error {result.worst:.3g} ({result.worst_output}), {len(case.outputs)} outputs")
    # conftest.py prints these after the run and records them on request
    record_property("parity", {"slug": slug, "case": case.name, "worst": result.worst, "outputs": len(case.outputs)})
    assert not result.problems, f"{slug}/{case.name} ({case.official})\n  " + "\n  ".join(result.problems)
