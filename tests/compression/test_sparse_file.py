from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from paperworks.compression.allocation import allocate, apply_allocation
from paperworks.compression.sparse_file import load_sparse, save_sparse
from paperworks.compression.sparsity import plain_state_dict
from paperworks.errors import InputError


def test_round_trip_and_size(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(512, 40))
    apply_allocation(model, allocate(model, "uniform", 0.9))
    size = save_sparse(model, tmp_path / "pruned.safetensors")
    state = load_sparse(tmp_path / "pruned.safetensors")
    plain = plain_state_dict(model)
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[name], value) and state[name].dtype == value.dtype for name, value in plain.items())
    weights = 864 + 20480
    values = 86 + 2048
    assert size < weights / 8 + values * 4 + 4096 < 4 * weights / 4
    half = save_sparse(model, tmp_path / "half.safetensors", dtype=torch.float16)
    assert half < size
    assert torch.allclose(load_sparse(tmp_path / "half.safetensors")["3.weight"], plain["3.weight"], atol=1e-3)


def test_dense_tensors_stay_plain(tmp_path):
    model = nn.Linear(8, 8)
    save_sparse(model, tmp_path / "dense.safetensors")
    assert torch.equal(load_sparse(tmp_path / "dense.safetensors")["weight"], model.weight.detach())


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_sparse(tmp_path / "missing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InputError, match="not a safetensors file"):
        load_sparse(tmp_path / "text")
    save_file({"a": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(InputError, match="no sparse network"):
        load_sparse(tmp_path / "other")
