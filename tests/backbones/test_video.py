"""Image networks on clips."""

import pytest
import torch

from paperworks.backbones.resnet import RS, ResNet
from paperworks.backbones.video import VideoResNet
from paperworks.errors import InputError

SMALL = {"layers": (1, 2, 1, 1), "channels": (4, 6, 8, 10), "num_classes": 3}


@pytest.mark.parametrize("options", [{"stem_width": 4}, {**RS, "stem_width": 4}])
def test_a_still_clip_is_its_frame_and_a_moving_one_is_not(options):
    torch.manual_seed(0)
    network = ResNet(**{**options, **SMALL, "zero_init_last": False}).eval()
    clips = VideoResNet(network, temporal=("conv1", "conv2"), stem_frames=3).eval()
    frame = torch.rand(2, 3, 65, 70)
    with torch.no_grad():
        still = clips(frame[:, :, None].expand(-1, -1, 5, -1, -1))
        assert torch.allclose(still, network(frame), atol=1e-5)
        for parameter in clips.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        moving = torch.rand(1, 3, 5, 64, 64)
        assert not torch.allclose(clips(moving), clips(moving.flip(2)), atol=1e-5)  # order in time matters


def test_bad_input_is_named():
    network = ResNet(**SMALL, stem_width=4)
    with pytest.raises(InputError, match="blocks have conv1, conv2, conv3"):
        VideoResNet(network, temporal=("conv9",))
    with pytest.raises(InputError, match="must be odd"):
        VideoResNet(network, stem_frames=2)
    with pytest.raises(InputError, match=r"clips are \[N, 3, T, H, W\]"):
        VideoResNet(network)(torch.rand(1, 3, 64, 64))
