"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test depends on a network, and none waits for one

import pytest
import torch

from tests.data.making import write_jpegs

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the library keeps between runs goes to a temporary folder, not to the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAPERWORKS_CACHE", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    """Weights and images that a test makes without a generator of its own."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the repository with recorded cases and sample data; tests that need it are skipped without it."""
    folder = Path(os.environ.get("PAPERWORKS_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no sample data: {folder} is absent (set PAPERWORKS_SHARED)")
    return folder


@pytest.fixture
def jpeg_folder(tmp_path: Path) -> Path:
    """30 JPEGs of several sizes in three class folders, 5 of them broken."""
    return write_jpegs(tmp_path / "jpegs")
