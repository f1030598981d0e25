"""A classifier in domains it was not trained for: accuracy under photometric shifts, and how far they move each layer's
features, beside how far other contents move them (IBN-Net 1807.09441, sections 3.2 and 4.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from paperworks.analysis.feature_divergence import channel_means, gaussian_divergence
from paperworks.backbones.protocol import Backbone
from paperworks.data import ImageSource
from paperworks.data.transforms import to_float
from paperworks.objectives.classify import Scores, score
from paperworks.paper import Run, first_process
from paperworks.papers._classification import ClassifierConfig, Trained, _some, in_order, open_split
from paperworks.papers._recognition_claims import Shift
from paperworks.reporting import Report

LOOKED_AT = 256
"""images whose features are compared"""
SCORED = 1000
"""images that are classified in every domain"""


def _contrast(images: Tensor) -> Tensor:
    middle = images.mean((2, 3), keepdim=True)
    return (middle + 1.5 * (images - middle)).clamp(0, 1)


SHIFTS: Mapping[str, Shift] = {
    "brighter": lambda images: (images + 50 / 255).clamp(0, 1),
    "redder": lambda images: torch.cat((images[:, :1] + 50 / 255, images[:, 1:]), 1).clamp(0, 1),
    "contrast": _contrast,
    "colour cast": lambda images: images * images.new_tensor([0.6, 1.0, 0.8]).view(3, 1, 1),
    "gamma": lambda images: images.clamp(0, 1) ** 2,
}
"""the paper's photometric shifts (its table 5) and two more"""


def scores_by_domain(
    trained: Trained, source: ImageSource, size: int | None = None, crop_pct: float | None = None
) -> dict[str, Scores]:
    """On the images as they are ("as they are") and in every shifted domain."""
    numbers = trained.align(source)
    found = {}
    for name, shift in {"as they are": _unchanged, **SHIFTS}.items():
        batches = (b | {"label": numbers[b["label"]]} for b in in_order(source, trained.transform(size, crop_pct)))
        found[name] = score(partial(_shifted_logits, trained, shift), batches, len(trained.classes))
    return found


def _unchanged(images: Tensor) -> Tensor:
    return images


def _shifted_logits(trained: Trained, shift: Shift, images: Tensor) -> Tensor:
    return trained.objective.logits(shift(images))


def blocks_of(network: Backbone) -> list[str]:
    """Names of the network's blocks, from the image on."""
    return [name for name, _ in network.named_modules() if re.fullmatch(network.blocks_pattern, name)]


def divergences(trained: Trained, source: ImageSource) -> dict[str, dict[str, float]]:
    """{what differs: {block: divergence}}: each shift against the images as they are, and one half of the classes against the
    other ("content")."""
    network = trained.objective.model
    assert isinstance(network, Backbone)
    layers = blocks_of(network)

    def means(shift: Shift) -> dict[str, Tensor]:
        def batches() -> Iterator[Tensor]:
            for batch in in_order(source, trained.transform()):
                yield shift(to_float(batch["image"]))

        return channel_means(network, batches(), layers, forward=trained.objective.logits)

    plain = means(_unchanged)
    found = {}
    for name, shift in SHIFTS.items():
        moved = means(shift)
        found[name] = {layer: gaussian_divergence(plain[layer], moved[layer]) for layer in layers}
    assert source.labels is not None and source.classes is not None
    early = source.labels < (len(source.classes) + 1) // 2
    if min(int(early.sum()), int((~early).sum())) >= 2:
        found["content"] = {layer: gaussian_divergence(plain[layer][early], plain[layer][~early]) for layer in layers}
    return found


def write_domains(config: ClassifierConfig, run: Run) -> Mapping[str, Any]:
    """domains.html of a run that has been trained: accuracy in other domains, divergence by block."""
    if not first_process():
        return {}
    trained, test = Trained.of(run), open_split(config, "test")
    scored = _some(test, SCORED)
    accuracy = {name: found.top1 for name, found in scores_by_domain(trained, scored).items()}
    apart = divergences(trained, _some(test, LOOKED_AT))
    shifted = sum(accuracy[name] for name in SHIFTS) / len(SHIFTS)

    page = Report("In other domains", f"{config.network.name} on {test.name}, trained on unchanged images only")
    page.figures({"top-1 as they are": f"{accuracy['as they are']:.1%}", "mean of the shifts": f"{shifted:.1%}"})
    rows = [[name, f"{value:.2%}", f"{100 * (value - accuracy['as they are']):+.2f}"] for name, value in accuracy.items()]
    page.table("Accuracy by domain", ["images", "top-1", "points"], rows, note=f"{len(scored)} held-out images.")
    layers = blocks_of(trained.objective.model)  # type: ignore[arg-type]
    appearance = [sum(apart[name][layer] for name in SHIFTS) / len(SHIFTS) for layer in layers]
    numbers = list(range(1, len(layers) + 1))
    series = {"appearance (mean of the shifts)": (numbers, appearance)}
    if "content" in apart:
        series["content (half of the classes against the other)"] = (numbers, [apart["content"][layer] for layer in layers])
    page.curves(
        "How far features move",
        series,
        xlabel="block",
        ylabel="divergence",
        caption="Symmetric divergence of each block's channel means. A network that ignores appearance keeps the first line "
        "low from the first blocks on; one that knows contents lets the second rise.",
    )
    table = [[layer, *(f"{apart[name][layer]:.3f}" for name in apart)] for layer in layers]
    page.table("Divergence by block", ["block", *apart], table)
    page.save(run.folder / "domains.html")
    return {"top1": accuracy, "shifted": shifted, "divergence": apart, "page": "domains.html"}
