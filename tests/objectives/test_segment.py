import pytest
import torch

from paperworks.backbones.adventurer import Adventurer
from paperworks.backbones.resnet import ResNet
from paperworks.errors import InputError
from paperworks.layers.dense_heads import ConvolutionalDecoder, LinearDecoder
from paperworks.objectives.segment import Segment, mean_iou
from paperworks.training import Context

CTX = Context(step=0, max_steps=1, seed=0)


@pytest.mark.parametrize("decoder", [LinearDecoder, ConvolutionalDecoder])
def test_both_kinds_of_backbones_learn_a_batch(decoder):
    torch.manual_seed(0)
    batch = {
        "image": torch.rand(2, 3, 32, 32),
        "pixel": torch.randint(3, (2, 4, 4)).repeat_interleave(8, 1).repeat_interleave(8, 2),
    }
    bodies = {
        8: Adventurer(32, 8, 32, 2, mamba_d_state=8, headdim=16, num_classes=0),
        32: ResNet("basic", (1, 1, 1, 1), (8, 8, 16, 32), stem_width=8, num_classes=0),
    }
    for reduction, body in bodies.items():
        objective = Segment(body, decoder(32, 3, reduction))
        assert objective.scores(batch["image"]).shape == (2, 3, 32, 32)
        optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
        losses = []
        for _ in range(12):
            found = objective.loss(batch, "main", CTX)
            optimizer.zero_grad()
            (found.total / found.count).backward()
            optimizer.step()
            losses.append(float(found.logs["loss"]))
        assert losses[-1] < losses[0]


def test_maps_and_classes_of_another_size_are_refused():
    objective = Segment(Adventurer(32, 8, 32, 1, mamba_d_state=8, headdim=16, num_classes=0), LinearDecoder(32, 3, 4))
    with pytest.raises(InputError, match=r"\(16, 16\) pixels for classes of \(32, 32\)"):
        objective.loss({"image": torch.rand(1, 3, 32, 32), "pixel": torch.zeros(1, 32, 32, dtype=torch.int64)}, "main", CTX)
    with pytest.raises(InputError, match="power of two"):
        ConvolutionalDecoder(8, 3, 6)
    with pytest.raises(InputError, match="reduction=0"):
        LinearDecoder(8, 3, 0)


class Fixed(Segment):
    """Says class 1 on the left half and class 0 on the right."""

    def scores(self, images):
        scores = torch.zeros(len(images), 2, 4, 4)
        scores[:, 1, :, :2], scores[:, 0, :, 2:] = 1, 1
        return scores


def test_intersection_over_union_is_the_mean_of_classes():
    objective = Fixed(Adventurer(8, 8, 32, 1, mamba_d_state=8, headdim=16, num_classes=0), LinearDecoder(32, 2, 8))
    truth = torch.zeros(1, 4, 4, dtype=torch.int64)
    truth[:, :, :1] = 1
    # class 1: 4 of 8 pixels in common; class 0: 8 of 12
    found = mean_iou(objective, [{"image": torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "pixel": truth}], 2)
    assert found == pytest.approx(100 * (4 / 8 + 8 / 12) / 2)
