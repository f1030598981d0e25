"""Released weights with as many classes as their file has, whatever their number; images as a configuration wants them."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from paperworks.backbones.registry import entries
from paperworks.data.transforms import NoisyRandAugment
from paperworks.errors import InputError
from paperworks.paper import Run
from paperworks.papers._classification import (
    AugmentConfig,
    ClassifierConfig,
    NetworkConfig,
    Trained,
    build_network,
    load_released,
    training_transform,
)

TINY = {"dims": [8, 8], "depths": [1, 1], "stem_width": 8, "head_dim": 8, "window": 4}


def written(folder, classes: int, name: str = "maxvit_tiny", arguments=TINY) -> tuple[NetworkConfig, dict[str, torch.Tensor]]:
    """A network's file of weights, and what is in it."""
    weights = entries()[name].build(**{**arguments, "num_classes": classes}).state_dict()
    save_file(weights, folder / "weights.safetensors")
    return NetworkConfig(name, arguments, str(folder / "weights.safetensors")), weights


def loaded(folder, network: NetworkConfig) -> Trained:
    config = ClassifierConfig("", image_size=32, network=network, augment=AugmentConfig("crop"))
    new = {"slug": "maxvit", "recipe": "released", "arguments": {}, "command": "paperworks run maxvit"}
    run = Run.open(folder / "run", config=config, **new)
    run.record["stages"]["train"] = {"seconds": 0, "result": dict(load_released(config, run))}
    return Trained.of(run)


@pytest.mark.parametrize(("classes", "first"), [(1000, "tench"), (1001, "tench"), (21843, "organism")])
def test_parts_of_imagenet_are_known_by_their_number_of_classes(tmp_path, classes, first):
    network, weights = written(tmp_path, classes)
    trained = loaded(tmp_path, network)
    assert trained.classes[0] == first and len(trained.classes) == len(trained.also_called)
    kept = weights["head.fc.weight"][classes == 1001 :]  # the first of 1001 is "background"
    assert torch.equal(trained.objective.model.head.fc.weight, kept) and len(kept) == len(trained.classes)


def test_names_that_several_classes_have_tell_none_of_them(tmp_path):
    trained = loaded(tmp_path, written(tmp_path, 1000)[0])
    called = [name for names in trained.also_called for name in names]
    assert len(called) == len(set(called)) and "n01440764" in trained.also_called[0] and "crane" not in called


def test_a_network_of_other_classes_has_numbers(tmp_path):
    name, arguments = "nasnet_a_cifar_6_768", {"num_cells": 3, "filters": 4}
    trained = loaded(tmp_path, written(tmp_path, 10, name, arguments)[0])
    assert trained.classes == [str(number) for number in range(10)] and not any(trained.also_called)


def test_weights_of_classes_that_nobody_named_are_refused_and_can_be_fine_tuned(tmp_path):
    network, weights = written(tmp_path, 7)
    with pytest.raises(InputError, match=r"has 7 classes and maxvit_tiny's released one 1000.*--recipe finetune"):
        loaded(tmp_path, network)
    tuned = build_network(network, 3, seed=0)
    assert tuned.head.fc.out_features == 3 and torch.equal(tuned.stem.conv1.weight, weights["stem.conv1.weight"])


def test_images_are_augmented_as_the_configuration_says():
    config = ClassifierConfig(network=NetworkConfig("maxvit_tiny"), augment=AugmentConfig("shift", flip=False, cutout=40))
    image = torch.full((1, 3, 32, 32), 250, dtype=torch.uint8)
    transform = training_transform(config)
    cut = transform.apply(image, torch.full((1, transform.draws), 0.5))
    assert cut[0, :, 16, 16].tolist() == [124, 116, 104]  # ImageNet's mean colour
    with pytest.raises(InputError, match=r"augment\.cutout=40"):
        training_transform(replace(config, augment=AugmentConfig("imagenet", cutout=40)))
    steps = training_transform(replace(config, augment=AugmentConfig("imagenet", magnitude=15.0, probability=0.8))).transforms
    [augment] = [step for step in steps if isinstance(step, NoisyRandAugment)]
    assert (augment.mean, augment.deviation, augment.probability) == (15.0, 0.5, 0.8)
