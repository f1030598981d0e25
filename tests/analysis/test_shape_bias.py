import pytest
import torch

from paperworks.analysis.shape_bias import coarse_scores, network_shape_bias, shape_bias
from paperworks.errors import InputError


def test_only_conflicts_decide():
    shape, texture = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 2, 2])
    found = shape_bias(torch.tensor([0, 2, 2, 1]), shape, texture, 3)  # shape, texture, no conflict, neither
    assert found.bias == 0.5 and found.fraction_shape == 0.25 and found.fraction_texture == 0.25
    assert found.per_class.tolist() == [1.0, 0.0, -1.0]
    with pytest.raises(InputError, match="no picture has a shape class"):
        shape_bias(shape, shape, shape, 3)
    with pytest.raises(InputError, match="outside 0 to 1"):
        shape_bias(shape, shape, texture, 2)


def test_groups_take_means_and_share_nothing():
    probabilities = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    assert torch.allclose(coarse_scores(probabilities, [[0, 1], [3]]), torch.tensor([[0.15, 0.4]]))
    with pytest.raises(InputError, match="class 1 is in two groups"):
        coarse_scores(probabilities, [[0, 1], [1]])
    with pytest.raises(InputError, match="empty"):
        coarse_scores(probabilities, [[]])


def test_a_networks_classes_are_sorted_into_those_of_the_pictures():
    # four classes of the network, two of the pictures; the first pixel's value times ten is the class that wins
    def network(images: torch.Tensor) -> torch.Tensor:
        return 20.0 * torch.nn.functional.one_hot((10 * images[:, 0, 0, 0]).round().long(), 4)

    images = torch.zeros(3, 3, 2, 2)
    images[:, 0, 0, 0] = torch.tensor([0.0, 0.3, 0.1])
    shape, texture = torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0])
    found = network_shape_bias(network, images, shape, texture, [[0, 2], [1, 3]], batch=2)  # decides 0, 1, 1
    assert found.bias == pytest.approx(2 / 3) and found.per_class.tolist() == [0.5, 1.0]
