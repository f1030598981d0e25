"""KimiaNet: features without the last ReLU, and the search by barcodes."""

import re

import torch
from torch import Tensor

from paperworks.analysis.retrieval import barcodes, distances, leave_one_out
from paperworks.backbones.kimianet import KimiaNet
from tests.parity.case import Case


def TOLERANCE(case: Case) -> tuple[float, float]:
    return (2e-5, 2e-5)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    return _search(case) if "labels" in case.inputs else _features(case)


def _features(case: Case) -> dict[str, Tensor]:
    given = {name: value for name, value in case.kwargs["densenet"].items() if name not in ("memory_efficient", "num_classes")}
    model = KimiaNet.from_official(case.weights, num_classes=case.kwargs["num_classes"], **given).eval()
    last = model.forward_features(case.inputs["x"])
    return {"features": model.forward_head(last, pre_logits=True), "logits": model(case.inputs["x"])}


def _search(case: Case) -> dict[str, Tensor]:
    numbers = sorted(int(found[1]) for name in case.inputs if (found := re.fullmatch(r"features(\d+)", name)))
    codes = [barcodes(case.inputs[f"features{number}"]) for number in numbers]
    result = {f"barcode{number}": code.long() for number, code in zip(numbers, codes)}
    table = distances(codes)
    result["distance"] = table.float()
    for top in case.kwargs["top"]:
        result[f"pred_top{top}"] = leave_one_out(table, case.inputs["labels"], top, ties="numpy")
    return {name: value for name, value in result.items() if name in case.outputs}
