import pytest
import timm
import torch
from torch import nn

from paperworks.analysis.receptive_field import centred_squares, effective_receptive_field, last_map
from paperworks.errors import InputError
from tests.backbones.family import small


def test_one_convolution_sees_its_kernel_and_no_more():
    conv = nn.Conv2d(1, 1, 5, padding=2)
    nn.init.ones_(conv.weight)
    nn.init.ones_(conv.bias)
    field = effective_receptive_field(lambda x: conv(x), [torch.rand(1, 21, 21) for _ in range(2)])
    assert field.contribution[8:13, 8:13].gt(0).all() and field.contribution.sum() == field.contribution[8:13, 8:13].sum()
    assert field.squares[-1].side == 5 and field.squares[-1].area == pytest.approx(25 / 441)


def test_squares_that_are_never_reached_are_none():
    ends = torch.zeros(15, 15)
    ends[0, 0] = 1.0
    assert [square.side for square in centred_squares(ends, (0.5,))] == [None]


def test_what_cannot_be_measured_is_named():
    with pytest.raises(InputError, match="give a function from images to the map before pooling"):
        effective_receptive_field(lambda x: x.mean((2, 3)), [torch.rand(3, 8, 8)])
    with pytest.raises(InputError, match="finite gradient"):
        effective_receptive_field(lambda x: x * torch.nan, [torch.rand(3, 8, 8)])
    with pytest.raises(InputError, match="depends on no pixel"):
        effective_receptive_field(lambda x: x * 0, [torch.rand(3, 8, 8)])


def test_transformers_are_measured_at_the_centre_of_their_last_map():
    torch.manual_seed(0)
    small_swin = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 1, 1, 1)}
    swin = timm.create_model("swin_tiny_patch4_window7_224", **small_swin).eval()
    vit = small("resformer_small_patch16")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        tokens = swin.forward_features(image)
        assert tokens.shape == (1, 2, 2, 192)  # rows and columns first
        assert last_map(swin)(image).shape == (1, 192, 2, 2)
        assert last_map(vit)(image).shape == (1, 24, 8, 8)
    for network in (swin, vit):
        field = effective_receptive_field(network, image)
        assert field.contribution.shape == (64, 64) and bool(field.contribution.any())


def test_networks_without_maps_are_named():
    with pytest.raises(InputError, match="Linear has neither forward_intermediates nor forward_features"):
        effective_receptive_field(nn.Linear(2, 2), [torch.rand(3, 8, 8)])

    class RowsFirst(nn.Module):
        output_fmt = "NHWC"

        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return x.permute(0, 2, 3, 1)

    with pytest.raises(InputError, match="RowsFirst has neither"):
        effective_receptive_field(RowsFirst(), [torch.rand(3, 8, 8)])

    class ColumnsLast(nn.Module):
        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return x

    assert effective_receptive_field(ColumnsLast(), [torch.rand(3, 8, 8)]).contribution.nonzero().tolist() == [[4, 4]]
