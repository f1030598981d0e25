import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paperworks.analysis.counting import count_macs, count_parameters, macs_by_kind
from paperworks.errors import InputError


@pytest.mark.parametrize(
    ("name", "giga", "million"),
    [("resnet50", 4.089, 25.557), ("convnext_tiny", 4.456, 28.589), ("vit_tiny_patch16_224", 1.254, 5.717)],
)
def test_published_networks_on_the_meta_device(name: str, giga: float, million: float) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        network, image = timm.create_model(name), torch.zeros(1, 3, 224, 224)
    assert count_macs(network, image) / 1e9 == pytest.approx(giga, abs=5e-4)
    assert count_parameters(network) / 1e6 == pytest.approx(million, abs=5e-4)


def test_kinds() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 6, 3, stride=2, padding=1),
        nn.Flatten(),
        nn.Linear(6 * 25, 7, bias=False),
    )
    found = macs_by_kind(network, torch.zeros(2, 4, 10, 10))
    assert found == {
        "depthwise": 2 * 100 * 4 * 9,
        "pointwise": 2 * 100 * 4 * 8,
        "grouped": 2 * 100 * 8 * 4 * 9,
        "dense": 2 * 25 * 8 * 6 * 9,
        "linear": 2 * 150 * 7,
        "attention": 0,
    }


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_counts_however_it_is_computed(device: str) -> None:
    class Attend(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    assert macs_by_kind(Attend(), torch.zeros(2, 3, 5, 8, device=device))["attention"] == 2 * 3 * 2 * 5 * 5 * 8
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, device=device)
    assert count_macs(layer, torch.zeros(1, 10, 64, device=device)) == 10 * (4 * 64 * 64 + 2 * 64 * 256) + 2 * 10 * 10 * 64


def test_transposed_convolution() -> None:
    assert count_macs(nn.ConvTranspose2d(4, 8, 2, 2), torch.zeros(1, 4, 5, 5)) == 25 * 4 * 8 * 4


def test_inference_mode_changes_nothing() -> None:
    with torch.inference_mode():
        assert count_macs(nn.Linear(3, 5), torch.zeros(2, 7, 3)) == 2 * 7 * 3 * 5
        found = macs_by_kind(nn.Conv2d(4, 4, 3, groups=4), torch.zeros(1, 4, 3, 3))
        assert found["depthwise"] == sum(found.values()) == 4 * 9
        assert count_macs(nn.Conv1d(4, 4, 3), torch.zeros(1, 4, 3)) == 4 * 4 * 3


def test_the_module_is_left_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).eval(), nn.Dropout())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count_macs(network, torch.ones(1, 3, 4, 4))
    assert [each.training for each in network] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_parameters() -> None:
    layer = nn.Linear(3, 5)
    shared = nn.Sequential(layer, nn.Linear(5, 3), layer)
    assert count_parameters(shared) == 20 + 18
    layer.requires_grad_(False)
    assert count_parameters(shared, trainable_only=True) == 18


def test_an_input_is_needed() -> None:
    with pytest.raises(InputError, match="needs an input"):
        count_macs(nn.Linear(3, 5))
