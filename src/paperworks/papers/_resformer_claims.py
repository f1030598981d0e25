"""How ResFormer's claims are measured: small networks with equal image passes at eight test sizes; positions; other tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.backbones.resformer import GlobalPosition, Grid, LocalAttention, ResFormer
from paperworks.data.transforms import train_crop
from paperworks.objectives.multi_resolution import MultiResolution
from paperworks.paper import Bench, Measured, write_json
from paperworks.papers._classification import DIGITS, AugmentConfig
from paperworks.papers._recognition_claims import Budget, test_images, training_images
from paperworks.papers._resformer_training import accuracies, fit_sizes, plain_vit

SIZES = (32, 24, 16)
"""of training; the plain ViT sees 32 only"""
TESTED = (12, 16, 20, 24, 28, 32, 40, 48)
UNSEEN = tuple(size for size in TESTED if size not in SIZES)
NETWORK: dict[str, Any] = {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2}
BUDGET = Budget(images=6000, test_images=1000, epochs=5.6, batch=32, lr=2e-3, smoothing=0.0)
"""epochs of images; every image makes three passes in each"""


# --- trained ----------------------------------------------------------------------------------------------------------------


class NoGlobalPosition(nn.Module):
    """In place of the sine map, for the ablation."""

    def forward(self, grid: Grid) -> Tensor:
        return torch.zeros(())


def build(name: str, classes: int) -> nn.Module:
    """ResFormer, the plain ViT, or a ResFormer that lacks one thing (the consistency loss is not the network's affair)."""
    if name == "plain ViT":
        return plain_vit(NETWORK, SIZES[0], classes)
    model = ResFormer(**NETWORK, num_classes=classes)
    if name == "no global positions":
        model.pos_embed = NoGlobalPosition()
    if name == "no local positions":
        for module in model.modules():
            if isinstance(module, LocalAttention):
                module.get_v.requires_grad_(False)  # the kernels start at zero, and stay there
    return model


def trained(bench: Bench, name: str, seed: int) -> dict[str, float]:
    """Top-1 in percent by test size. A finished network's numbers are read again."""
    folder = bench.folder / f"{name.replace(' ', '-')}-{seed}"
    result = folder / "accuracy.json"
    if result.is_file():
        return json.loads(result.read_text())
    source, test = training_images(bench, BUDGET), test_images(bench, BUDGET)
    assert source.classes is not None
    classes, flip = len(source.classes), bench.data not in DIGITS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(name, classes)
    sizes = SIZES[:1] if name == "plain ViT" else SIZES
    consistency: Any = "none" if name in ("plain ViT", "no consistency") else "smooth_l1"
    objective = MultiResolution(model, sizes, consistency=consistency)
    augment = AugmentConfig("crop", flip=flip, mixup=0.0, cutmix=0.0, smoothing=BUDGET.smoothing)
    fit_sizes(
        objective,
        source,
        augment,
        lambda size: train_crop(size, flip=flip),
        BUDGET.config(len(source), seed),
        folder,
        passes=len(SIZES),
        label=f"{name}, seed {seed}",
    )
    objective.eval()
    found = accuracies(objective.logits, test, TESTED, 0.9, classes)
    numbers = {size: 100 * value for size, value in found.items()}
    write_json(result, numbers)
    bench.say(f"{name}, seed {seed}: " + ", ".join(f"{size} px {value:.1f}" for size, value in numbers.items()))
    return numbers


def all_trained(bench: Bench, names: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """Every network with one seed, then with the next."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for seed in bench.seeds:
        for name in names:
            found[name].append(trained(bench, name, seed))
    return found


def by_size(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the seeds."""
    return {str(size): round(mean(run[str(size)] for run in runs), 2) for size in TESTED}


def words(name: str, runs: Sequence[dict[str, float]]) -> str:
    return f"{name} " + ", ".join(f"{size}: {value:.1f}" for size, value in by_size(runs).items())


def scale(bench: Bench) -> str:
    passes = len(SIZES) * BUDGET.epochs
    return f"{BUDGET.words(bench)} of {len(SIZES)} sizes ({passes:.0f} passes of every image)".replace(
        "32 pixels", "12-48 pixels"
    )


def plain_falls(bench: Bench) -> Measured:
    """Points that the plain ViT loses at 16 or 48 pixels, the larger of the two, per seed."""
    runs = all_trained(bench, ["plain ViT"])["plain ViT"]
    falls = [run["32"] - min(run["16"], run["48"]) for run in runs]
    detail = words("plain ViT trained at 32 pixels, top-1 % by test size:", runs)
    return Measured(mean(falls), scale(bench), detail, falls, list(bench.seeds), {"top1": by_size(runs)}, "points")


def wide_range(bench: Bench) -> Measured:
    """ResFormer's lead over the plain ViT by test size; the value is the smallest at sizes neither was trained at."""
    found = all_trained(bench, ["ResFormer", "plain ViT"])
    leads = {
        str(size): round(mean(a[str(size)] - b[str(size)] for a, b in zip(found["ResFormer"], found["plain ViT"])), 2)
        for size in TESTED
    }
    least = [min(a[str(s)] - b[str(s)] for s in UNSEEN) for a, b in zip(found["ResFormer"], found["plain ViT"])]
    detail = "; ".join(words(name, runs) for name, runs in found.items())
    numbers = {"lead": leads, **{name: by_size(runs) for name, runs in found.items()}}
    worst = min(leads[str(size)] for size in UNSEEN)
    return Measured(worst, scale(bench), f"top-1 % by test size: {detail}", least, list(bench.seeds), numbers, "points")


def consistency_helps(bench: Bench) -> Measured:
    """Points of mean accuracy over the eight test sizes that the consistency loss brings, per seed."""
    found = all_trained(bench, ["ResFormer", "no consistency"])
    points = [mean(a.values()) - mean(b.values()) for a, b in zip(found["ResFormer"], found["no consistency"])]
    detail = "; ".join(words(name, runs) for name, runs in found.items())
    numbers = {name: by_size(runs) for name, runs in found.items()}
    return Measured(mean(points), scale(bench), f"top-1 % by test size: {detail}", points, list(bench.seeds), numbers, "points")


def smooth_positions(bench: Bench) -> Measured:
    """The largest relative change of the global positions from one grid to the next, from 6 x 6 (96 pixels) to 40 x 40 (640).

    The larger grid's map is resized to the smaller one. Accuracies without either kind of positions are printed for one seed.
    """
    changes: dict[int, float] = {}
    for seed in bench.seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            positions = GlobalPosition(384)
        maps = {side: _map(positions, (side, side)) for side in range(6, 42)}
        for side in range(6, 41):
            resized = F.interpolate(maps[side + 1], (side, side), mode="bicubic", align_corners=False)
            change = float((resized - maps[side]).norm() / maps[side].norm())
            changes[side] = max(changes.get(side, 0.0), change)
    ran = any_grid()
    first = Bench(bench.folder, list(bench.seeds)[:1], bench.data, bench.say)
    found = all_trained(first, ["ResFormer", "no global positions", "no local positions"])
    means = {name: round(mean(runs[0].values()), 2) for name, runs in found.items()}
    printed = ", ".join(f"{name} {value:.1f} %" for name, value in means.items())
    detail = f"{ran} grids ran with one set of weights; mean accuracy over {len(TESTED)} test sizes, one seed: {printed}"
    numbers = {"grids": ran, "changes": changes, "ablation": means, "by size": {n: by_size(r) for n, r in found.items()}}
    return Measured(max(changes.values()), "positions of width 384 as initialised", detail, numbers=numbers, unit="of the norm")


def _map(positions: GlobalPosition, grid: Grid) -> Tensor:
    with torch.no_grad():
        return positions(grid).transpose(1, 2).unflatten(2, grid)


GRIDS: tuple[Grid, ...] = ((1, 1), (1, 9), (2, 3), (5, 5), (8, 8), (13, 7), (24, 24), (31, 40))


def any_grid() -> int:
    """How many of GRIDS one network takes, without new parameters and with finite results."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResFormer(**NETWORK, num_classes=10).eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        taken = 0
        for rows, columns in GRIDS:
            with torch.no_grad():
                logits = model(torch.rand(1, 3, 4 * rows, 4 * columns))
            taken += bool(torch.isfinite(logits).all())
    after = model.state_dict()
    return taken if before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before) else 0


# --- other tasks ------------------------------------------------------------------------------------------------------------


def other_tasks() -> Measured:
    """A dense head, a detector and a frame-wise head, each at two image sizes. One works when maps have the grid's shape and
    all parameters of network and head get finite gradients; how the loss moves within 8 steps is only printed."""
    tasks = {"segmentation": _segmentation, "detection": _detection, "video": _video}
    works, losses = 0, {}
    for name, make in tasks.items():
        for size in ((64, 64), (48, 80)):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                body = ResFormer(8, 32, 2, 2, num_classes=0)
                head, loss_of = make(body, size)
                with torch.no_grad():
                    shape = _last_map(body, torch.rand(2, 3, *size)).shape
                reached = _gradients(body, head, loss_of)
                works += reached and shape == (2, 32, size[0] // 8, size[1] // 8)
                losses[f"{name} {size[0]}x{size[1]}"] = _losses(body, head, loss_of)
    shown = ", ".join(f"{name} {before:.2f} to {after:.2f}" for name, (before, after) in losses.items())
    detail = f"loss on noise over 8 steps, not part of the rule: {shown}; benchmark scores were not measured"
    return Measured(works, "a network of width 32, one batch per head and size", detail, numbers=losses)


def _gradients(body: ResFormer, head: nn.Module, loss_of: Callable[[], Tensor]) -> bool:
    """Whether every parameter gets one that is finite."""
    loss_of().backward()
    gradients = [parameter.grad for parameter in (*body.parameters(), *head.parameters())]
    return all(gradient is not None and bool(torch.isfinite(gradient).all()) for gradient in gradients)


def _losses(body: ResFormer, head: nn.Module, loss_of: Callable[[], Tensor]) -> tuple[float, float]:
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    losses = []
    for _ in range(8):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


def _last_map(body: ResFormer, images: Tensor) -> Tensor:
    return body.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0]


def _segmentation(body: ResFormer, size: tuple[int, int]) -> tuple[nn.Module, Callable[[], Tensor]]:
    images, head = torch.rand(2, 3, *size), nn.Conv2d(32, 3, 1)
    classes = (images.mean(1) * 3).long().clamp(max=2)

    def loss() -> Tensor:
        logits = F.interpolate(head(_last_map(body, images)), size, mode="bilinear")
        return F.cross_entropy(logits, classes)

    return head, loss


class _Maps(nn.Module):
    """What torchvision's detectors ask of a backbone."""

    out_channels = 32

    def __init__(self, body: ResFormer):
        super().__init__()
        self.body = [body]  # not a sub-module: its parameters are counted once, as the network's

    def forward(self, images: Tensor) -> Tensor:
        return _last_map(self.body[0], images)


def _detection(body: ResFormer, size: tuple[int, int]) -> tuple[nn.Module, Callable[[], Tensor]]:
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    anchors = AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),))
    detector = RetinaNet(_Maps(body), 3, anchor_generator=anchors, min_size=min(size), max_size=max(size))
    images = list(torch.rand(2, 3, *size))
    boxes = torch.tensor([[4.0, 4.0, 30.0, 30.0], [20.0, 10.0, 46.0, 44.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 2])} for _ in images]
    return detector.train(), lambda: sum(detector(images, targets).values())


def _video(body: ResFormer, size: tuple[int, int]) -> tuple[nn.Module, Callable[[], Tensor]]:
    clips, labels, head = torch.rand(4, 3, 3, *size), torch.tensor([0, 1, 0, 1]), nn.Linear(32, 2)

    def loss() -> Tensor:
        frames = body(clips.flatten(0, 1)).unflatten(0, (4, 3))
        return F.cross_entropy(head(frames.mean(1)), labels)

    return head, loss
