"""Average precision of detectors as COCO counts it, through pycocotools, with ranges of object sizes of one's own."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from paperworks.errors import InputError

Found = Mapping[str, Tensor]
"""of one image: `boxes` [K, 4] as x1, y1, x2, y2, `labels` int64 [K], and for detections `scores` [K]"""

BOUNDLESS = 1e10


def average_precision(
    detections: Sequence[Found], truth: Sequence[Found], areas: Mapping[str, tuple[float, float]] | None = None
) -> dict[str, float]:
    """Percent: "all", and one for every range of `areas`, whose ends are square roots of areas in pixels.

    The mean over classes and over overlaps of 0.50 to 0.95, at most 100 detections an image. Objects outside of a range, and
    detections outside that match none, are neither right nor wrong in it. NaN for a range without objects.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if len(detections) != len(truth) or not truth:
        raise InputError(f"{len(detections)} images with detections and {len(truth)} with objects: give one each")
    ranges = {"all": (0.0, BOUNDLESS)} | {name: (low**2, high**2) for name, (low, high) in (areas or {}).items()}
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = _objects(truth)
        known.createIndex()
        if not sum(len(each["boxes"]) for each in detections):  # which pycocotools cannot read
            sizes = [each["area"] for each in known.dataset["annotations"]]
            there = {name: any(low <= size <= high for size in sizes) for name, (low, high) in ranges.items()}
            return {name: 0.0 if some else float("nan") for name, some in there.items()}
        judge = COCOeval(known, known.loadRes(_detections(detections)), "bbox")
        judge.params.areaRng = [list(ends) for ends in ranges.values()]
        judge.params.areaRngLbl = list(ranges)
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"][..., -1]  # overlaps, recalls, classes, ranges; -1 where a class has no object
    means = {}
    for number, name in enumerate(ranges):
        values = precision[..., number]
        means[name] = 100 * float(values[values > -1].mean()) if (values > -1).any() else float("nan")
    return means


def _objects(truth: Sequence[Found]) -> dict[str, list[dict[str, object]]]:
    """In COCO's layout; identities start at 1, for 0 means "no match"."""
    objects: list[dict[str, object]] = []
    for image, each in enumerate(truth):
        for (x1, y1, x2, y2), label in zip(each["boxes"].tolist(), each["labels"].tolist()):
            width, height = x2 - x1, y2 - y1
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image,
                    "category_id": label,
                    "bbox": [x1, y1, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    labels = sorted({label for each in truth for label in each["labels"].tolist()})
    return {
        "images": [{"id": image} for image in range(len(truth))],
        "categories": [{"id": label} for label in labels],
        "annotations": objects,
    }


def _detections(detections: Sequence[Found]) -> np.ndarray:
    """float [N, 7]: image, x, y, width, height, score, class."""
    rows = []
    for image, each in enumerate(detections):
        boxes = each["boxes"].float()
        corner, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
        number = torch.full((len(boxes), 1), float(image))
        rows.append(torch.cat((number, corner, extent, each["scores"].float()[:, None], each["labels"].float()[:, None]), 1))
    return torch.cat(rows).double().cpu().numpy()
