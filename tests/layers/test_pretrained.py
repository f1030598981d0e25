import argparse
import json

import pytest
import torch
from torch import Tensor, nn

from paperworks.errors import InputError
from paperworks.layers.pretrained import Pretrained, load_official, read_weights


class Net(nn.Module, Pretrained):
    def __init__(self, width: int = 4, activation: object = "gelu"):
        super().__init__()
        self.fc = nn.Linear(width, 2)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x))


def test_saved_networks_come_back_with_their_arguments(tmp_path):
    net = Net(width=7).eval()
    net.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"width": 7, "activation": "gelu"}
    again = Net.from_pretrained(tmp_path)
    x = torch.randn(3, 7)
    assert torch.equal(again(x), net(x)) and not again.training


def test_arguments_that_json_cannot_hold_are_refused_at_saving(tmp_path):
    with pytest.raises(InputError, match="activation"):
        Net(activation=nn.GELU).save_pretrained(tmp_path)


def test_a_folder_without_weights_and_weights_that_do_not_fit(tmp_path):
    Net().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="does not fit Net"):
        Net.from_pretrained(tmp_path, width=5)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        Net.from_pretrained(tmp_path)


def official() -> dict[str, Tensor]:
    return {f"backbone.{name}".replace("fc.", "linear."): value + 1 for name, value in Net().state_dict().items()}


def test_official_weights_load_through_patterns_or_a_function():
    weights = official() | {"mask_buffer": torch.zeros(1)}
    by_pattern = load_official(Net(), weights, rename={r"^backbone\.": "", "linear": "fc"}, ignore=["mask_"])
    by_function = load_official(
        Net(), weights, rename=lambda key: key.removeprefix("backbone.").replace("linear", "fc"), ignore=["mask_"]
    )
    for net in (by_pattern, by_function):
        assert torch.equal(net.fc.weight, weights["backbone.linear.weight"])


def test_all_misfits_are_listed_in_one_error():
    weights = Net().state_dict()
    weights["fc.bias"] = torch.zeros(3)
    weights["extra"] = weights.pop("norm.weight")
    del weights["norm.num_batches_tracked"]  # old files have no counters
    with pytest.raises(InputError) as error:
        load_official(Net(), weights)
    message = str(error.value)
    assert "1 missing: norm.weight" in message and "1 unexpected: extra" in message
    assert "fc.bias [3] instead of [2]" in message and "num_batches" not in message


def test_two_keys_with_one_name_are_refused():
    with pytest.raises(InputError, match="two keys"):
        load_official(Net(), {"a.fc": torch.zeros(1), "b.fc": torch.zeros(1)}, rename=lambda key: key[2:])


def test_weights_are_read_out_of_training_checkpoints(tmp_path):
    weights = {f"module.{name}": value for name, value in Net().state_dict().items()}
    torch.save({"model": weights, "epoch": 3, "args": argparse.Namespace(lr=1)}, tmp_path / "checkpoint.pth")
    load_official(Net(), read_weights(tmp_path / "checkpoint.pth"))
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(InputError, match="no state dict"):
        read_weights(tmp_path / "empty.pth")
    (tmp_path / "noise.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="not a checkpoint"):
        read_weights(tmp_path / "noise.pth")
    with pytest.raises(InputError, match="no such file"):
        read_weights(tmp_path / "absent.pth")
