"""What a trained or released classifier is good for: classes of your images, accuracy on your data, other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from paperworks.backbones.protocol import Backbone
from paperworks.data import open_images
from paperworks.data.transforms import to_float
from paperworks.errors import InputError
from paperworks.objectives.classify import Scores
from paperworks.papers._classification import Trained, _some, in_order
from paperworks.papers._classification_report import views
from paperworks.reporting import Report

Split = Literal["train", "test", "all"]


def predict(trained: Trained, images: str, top: int, page: Path | None) -> list[dict[str, Any]]:
    """One row per image with its `top` classes; with `page` also a page that shows the first hundred images."""
    source = open_images(images, split="all", labels="none", channels=3)
    top = min(top, len(trained.classes))
    network = trained.fast()
    rows: list[dict[str, Any]] = []
    for batch in in_order(source, trained.transform(), batch=32):
        best = network(to_float(batch["image"])).softmax(1).topk(top, dim=1)
        for shares, numbers in zip(best.values.tolist(), best.indices.tolist()):
            said = [f"{trained.classes[number]} {share:.1%}" for number, share in zip(numbers, shares)]
            rows.append({"image": source.key(len(rows))} | {f"{place}.": text for place, text in enumerate(said, 1)})
    rows += [{"image": key, "1.": f"not readable: {reason}"} for key, reason in source.skipped]
    if page is not None:
        shown = min(100, len(source))
        report = Report("Classes of your images", f"{source.name}: {len(source)} images, {len(source.skipped)} not readable")
        labels = [", ".join(text for name, text in row.items() if name != "image") for row in rows[:shown]]
        report.images("Most likely classes", views(source, trained, torch.arange(shown)), columns=4, labels=labels)
        report.save(page)
    return rows


def evaluate(
    trained: Trained, data: str, split: Split, size: int | None, crop_pct: float | None, limit: int | None
) -> dict[str, Any]:
    """Top-1 and top-5 as ImageNet classifiers are evaluated: resize the shorter side to size / crop_pct, cut the centre."""
    source = open_images(data, split=split, labels="required", channels=3)
    if limit is not None:
        source = _some(source, limit)
    found: Scores = trained.score(source, size, crop_pct)
    return {
        "data": source.name,
        "images": len(source),
        "skipped": len(source.skipped),
        "size": size or trained.size,
        "crop_pct": crop_pct or trained.crop_pct,
        "top-1 %": round(100 * found.top1, 2),
        "top-5 %": round(100 * found.top5, 2),
        "loss": round(found.loss, 4),
    }


def export(trained: Trained, to: str, path: Path) -> dict[str, Any]:
    """The network with normalisation inside: float images [N, 3, H, W] in [0, 1] -> logits. Outputs are compared with ours."""
    model = nn.Sequential(trained.objective.normalise, trained.objective.model).eval()
    example = torch.rand(2, 3, trained.size, trained.size)
    with torch.no_grad():
        expected = model(example)
    found = _to_onnx(model, example, path) if to == "onnx" else _to_torchscript(model, example, path)
    difference = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if difference > 1e-4:
        raise InputError(f"{path} gives outputs that differ by {difference:.2g} of the largest one")
    return {"file": str(path), "bytes": path.stat().st_size, "input": "float [N, 3, H, W] in [0, 1]", "difference": difference}


def _to_onnx(model: nn.Sequential, example: torch.Tensor, path: Path) -> torch.Tensor:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError("export to ONNX needs `pip install 'paperworks[export]'`") from None
    assert isinstance(model[1], Backbone)
    least = model[1].feature_info[-1]["reduction"]
    sizes = {2: torch.export.Dim("height", min=least), 3: torch.export.Dim("width", min=least)}
    torch.onnx.export(
        model,
        (example,),
        str(path),
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)} | sizes,),
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": example.numpy()})[0])


def _to_torchscript(model: nn.Module, example: torch.Tensor, path: Path) -> torch.Tensor:
    with torch.no_grad():
        traced = torch.jit.freeze(torch.jit.trace(model, example, check_trace=False))
        traced.save(str(path))
        return torch.jit.load(str(path))(example)
