"""Image networks on clips."""

import pytest
import torch

from paperworks.backbones.resnet import RS, ResNet
from paperworks.backbones.video import VideoResNet
from paperworks.errors import InputError

SMALL = {"layers": (1, 2, 1, 1), "channels": (4, 6, 8, 10), "num_classes": 3}
KINDS = {
    "plain": {"stem_width": 4},
    "resnet-rs": {**RS, "stem_width": 4},
    "se without biases": {"stem_width": 4, "attention": "se_linear"},
    "ibn a": {"stem_width": 4, "ibn": "a"},
    "ibn b": {"stem_width": 4, "ibn": "b"},
    "basic": {"block": "basic", "stem_width": 4, "ibn": "a"},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_still_clip_is_its_frame_and_a_moving_one_is_not(kind):
    torch.manual_seed(0)
    network = ResNet(**{**KINDS[kind], **SMALL, "zero_init_last": False}).eval()
    clips = VideoResNet(network, stem_frames=3).eval()
    frame = torch.rand(2, 3, 65, 70)
    with torch.no_grad():
        still = clips(frame[:, :, None].expand(-1, -1, 5, -1, -1))
        assert torch.allclose(still, network(frame), atol=1e-5)
        for parameter in clips.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        moving = torch.rand(1, 3, 5, 64, 64)
        assert not torch.allclose(clips(moving), clips(moving.flip(2)), atol=1e-5)  # order in time matters


def test_the_first_and_third_convolution_see_time_unless_told_otherwise():
    def frames(block, **options):
        clips = VideoResNet(ResNet(block, **SMALL, stem_width=4), **options)
        first = clips.network.layer2[1]
        return {name: layer.kernel_size[0] for name, layer in first.named_children() if name.startswith("conv")}

    assert frames("bottleneck") == {"conv1": 3, "conv2": 1, "conv3": 3}
    assert frames("basic") == {"conv1": 3, "conv2": 1}
    assert frames("bottleneck", temporal=("conv2",)) == {"conv1": 1, "conv2": 3, "conv3": 1}


def test_bad_input_is_named():
    network = ResNet(**SMALL, stem_width=4)
    with pytest.raises(InputError, match="blocks have conv1, conv2, conv3"):
        VideoResNet(network, temporal=("conv9",))
    strange = ResNet(**SMALL, stem_width=4)
    strange.maxpool = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1, padding="same"))
    with pytest.raises(InputError, match=r"maxpool.0 of the network is a Conv2d"):
        VideoResNet(strange)
    with pytest.raises(InputError, match="must be odd"):
        VideoResNet(network, stem_frames=2)
    with pytest.raises(InputError, match=r"clips are \[N, 3, T, H, W\]"):
        VideoResNet(network)(torch.rand(1, 3, 64, 64))
