import math

import pytest
import torch

from paperworks.analysis.detection import average_precision
from paperworks.errors import InputError


def objects(*boxes: tuple[float, ...], labels: list[int] | None = None, scores: list[float] | None = None) -> dict:
    found = {"boxes": torch.tensor(boxes).view(-1, 4), "labels": torch.tensor(labels or [0] * len(boxes), dtype=torch.int64)}
    return found | ({} if scores is None else {"scores": torch.tensor(scores)})


SMALL, LARGE = (10.0, 10.0, 18.0, 18.0), (20.0, 20.0, 60.0, 60.0)
AREAS = {"small": (0.0, 16.0), "large": (16.0, 64.0)}


def test_perfect_detections_have_all_of_it():
    truth = [objects(SMALL, LARGE), objects(LARGE)]
    found = [objects(SMALL, LARGE, scores=[0.9, 0.8]), objects(LARGE, scores=[0.7])]
    assert average_precision(found, truth, AREAS) == pytest.approx({"all": 100.0, "small": 100.0, "large": 100.0})


def test_ranges_count_their_own_objects_alone():
    truth = [objects(SMALL, LARGE)]
    found = average_precision([objects(LARGE, scores=[0.9])], truth, AREAS)
    assert found["large"] == pytest.approx(100) and found["small"] == 0 and 0 < found["all"] < 60


def test_overlap_decides_how_many_thresholds_are_met():
    # 40 x 40 against 40 x 32 of it: an overlap of 0.8 passes the thresholds 0.50 to 0.80, seven of ten
    found = average_precision([objects((20.0, 20.0, 60.0, 52.0), scores=[0.9])], [objects(LARGE)])
    assert found["all"] == pytest.approx(70)


def test_a_wrong_class_is_wrong_and_classes_are_averaged():
    truth = [objects(SMALL, LARGE, labels=[0, 1])]
    found = [objects(SMALL, LARGE, labels=[0, 0], scores=[0.9, 0.8])]
    assert average_precision(found, truth)["all"] == pytest.approx(50)


def test_nothing_found_and_nothing_there():
    empty = objects(scores=[])
    nothing = average_precision([empty], [objects(SMALL)], AREAS)
    assert nothing["all"] == nothing["small"] == 0 and math.isnan(nothing["large"])
    found = average_precision([objects(SMALL, scores=[0.5])], [objects(SMALL)], AREAS)
    assert math.isnan(found["large"])


def test_lists_have_to_fit():
    with pytest.raises(InputError, match="give one each"):
        average_precision([], [objects(SMALL)])
