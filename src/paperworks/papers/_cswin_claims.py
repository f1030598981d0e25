"""How CSWin's claims are measured: footprints and multiply-accumulates counted, and small networks that differ in one thing,
the windows or the positions, trained alike."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.analysis.counting import macs_by_kind
from paperworks.backbones.cswin import CrossShapedAttention, CSWin, CSWinBlock, CSWinDense, Stage, StripeAttention
from paperworks.backbones.registry import create
from paperworks.layers.positions import resized_positions
from paperworks.layers.windows import as_tokens, cut_windows, join_windows
from paperworks.paper import Bench, Measured
from paperworks.papers._recognition_claims import Budget, all_trained, giga_macs, lead

# --- counted ------------------------------------------------------------------------------------------------------------------

CROSSES = ((12, 12, 2), (14, 14, 7), (8, 12, 2), (16, 8, 4), (9, 6, 3), (10, 10, 1))
"""height and width of a map, width of the stripes"""
WIDTHS = (64, 128, 256, 512)
SIDES = (56, 28, 14, 7)
"""of the four stages' maps, CSWin-T at 224 pixels"""
DEPTHS = (1, 2, 21, 1)
PAIRS = {
    "T": ("cswin_tiny", "swin_tiny_patch4_window7_224", 224),
    "S": ("cswin_small", "swin_small_patch4_window7_224", 224),
    "B": ("cswin_base", "swin_base_patch4_window7_224", 224),
    "B, 384 px": ("cswin_base_384", "swin_base_patch4_window12_384", 384),
    "L": ("cswin_large", "swin_large_patch4_window7_224", 224),
    "L, 384 px": ("cswin_large_384", "swin_large_patch4_window12_384", 384),
}


def cost(height: int, width: int, channels: int, stripe: int) -> int:
    """Multiply-accumulates of cross-shaped attention with its projections: H W C (4 C + sw H + sw W) (section 3.2)."""
    return height * width * channels * (4 * channels + stripe * height + stripe * width)


def counted(height: int, width: int, channels: int, stripe: int) -> int:
    """The same, counted operator by operator; the depthwise convolution of the positions is not in the formula."""
    with torch.device("meta"):
        kinds = macs_by_kind(CrossShapedAttention(channels, 2, stripe), torch.zeros(1, height, width, channels))
    return kinds["linear"] + kinds["attention"]


def footprint(height: int, width: int, stripe: int) -> int:
    """Tokens that move one token of a block's output, found by the gradient; the same number for every token asked, else -1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = CSWinBlock(16, 4, stripe).double()
        x = torch.randn(1, 16, height, width, dtype=torch.float64, requires_grad=True)
    out = block(x)
    found = set()
    for row, column in ((0, 0), (height // 2, width // 2), (height - 1, 1)):
        [gradient] = torch.autograd.grad(out[0, :, row, column].sin().sum(), x, retain_graph=True)
        found.add(int((gradient[0] != 0).any(0).sum()))
    return found.pop() if len(found) == 1 else -1


def cross() -> Measured:
    numbers: dict[str, Any] = {}
    agreed = 0
    for height, width, stripe in CROSSES:
        tokens, expected = footprint(height, width, stripe), stripe * (height + width) - stripe**2
        macs, formula = counted(height, width, 64, stripe), cost(height, width, 64, stripe)
        agreed += tokens == expected and macs == formula
        numbers[f"{height}x{width}, stripe {stripe}"] = {
            "tokens": tokens,
            "of": height * width,
            "macs": macs,
            "formula": formula,
        }
    first = numbers["12x12, stripe 2"]
    whole = sum(macs_of_whole_map(56, 64).values()) / counted(56, 56, 64, 1)
    detail = (
        f"a token of a 12x12 map at stripe 2 sees {first['tokens']} of {first['of']}; on {len(CROSSES)} maps both counts were "
        f"compared with the formulas; attention over the whole 56x56 map costs {whole:.1f} times as much as stripes of 1"
    )
    return Measured(agreed / len(CROSSES), "any", detail, numbers=numbers)


def macs_of_whole_map(side: int, channels: int) -> dict[str, int]:
    with torch.device("meta"):
        kinds = macs_by_kind(CrossShapedAttention(channels, 2, None), torch.zeros(1, side, side, channels))
    return {"linear": kinds["linear"], "attention": kinds["attention"]}


def stripe_widths() -> Measured:
    """Every width that divides the map of a stage, for all four stages."""
    numbers: dict[str, Any] = {}
    agreed = total = 0
    for stage, (side, channels) in enumerate(zip(SIDES, WIDTHS), start=1):
        for stripe in (width for width in range(1, side + 1) if side % width == 0):
            macs = counted(side, side, channels, stripe)
            agreed += macs == cost(side, side, channels, stripe)
            total += 1
            numbers[f"stage {stage}, stripe {stripe}"] = macs
    plans = {"1, 2, 7, 7": (1, 2, 7, 7), "1, 1, 1, 7": (1, 1, 1, 7), "7, 7, 7, 7": (7, 7, 7, 7), "whole maps": SIDES}
    sums = {
        name: sum(
            depth * cost(side, side, channels, stripe) for depth, side, channels, stripe in zip(DEPTHS, SIDES, WIDTHS, plan)
        )
        for name, plan in plans.items()
    }
    words = ", ".join(f"{value / 1e9:.3f} G with {name}" for name, value in sums.items())
    detail = f"{agreed} of {total} widths cost what the formula says; attention of CSWin-T at 224 pixels: {words}"
    return Measured(agreed / total, "any", detail, numbers=numbers | {"plans": sums})


def against_swin() -> Measured:
    found = {}
    for name, (ours, theirs, size) in PAIRS.items():
        found[name] = giga_macs(partial(create, ours), size), giga_macs(partial(timm.create_model, theirs), size)
    ratios = {name: ours / theirs for name, (ours, theirs) in found.items()}
    words = ", ".join(f"{name} {ours:.2f} G against {theirs:.2f} G" for name, (ours, theirs) in found.items())
    return Measured(max(ratios.values()), "any", f"CSWin against timm's Swin: {words}", numbers=ratios)


# --- trained ------------------------------------------------------------------------------------------------------------------

BUDGET = Budget(epochs=5, lr=2e-3)
TRIAL: dict[str, Any] = {
    "dims": (32, 64, 128),
    "depths": (2, 2, 1),
    "heads": (2, 4, 8),
    "stripes": (1, 2, None),
    "patch_size": 2,
}
"""maps of 16, 8 and 4 tokens a side; a stripe of the first two stages has 16 tokens, as many as a window of 4x4"""
LARGER = "at 48 pixels"


def larger(images: Tensor) -> Tensor:
    return F.interpolate(images, size=(48, 48), mode="bilinear", align_corners=False)


class ShiftedWindows(nn.Module):
    """Attention in square windows, moved by half a window in every other block (Swin, 2103.14030): [N, H, W, C] -> the same.

    Products and parameters are those of stripes with as many tokens. The positions' convolution runs over the whole map, which
    helps the windows if anything.
    """

    def __init__(self, dim: int, heads: int, window: int, shift: int):
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.lepe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        for layer in (self.qkv, self.proj):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).unflatten(-1, (3, -1))
        local = self.lepe(qkv[:, :, :, 2].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        rolled = qkv.roll((-self.shift, -self.shift), (1, 2))
        windows = as_tokens(cut_windows(rolled, (self.window, self.window))).unflatten(0, (batch, -1))
        q, k, v = windows.unflatten(-1, (self.heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind()
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask(height, width, x.device) if self.shift else None)
        tokens = seen.transpose(2, 3).flatten(3).flatten(0, 1)
        joined = join_windows(tokens, (self.window, self.window), (height, width))
        return self.proj(joined.roll((self.shift, self.shift), (1, 2)) + local)

    def mask(self, height: int, width: int, device: torch.device) -> Tensor:
        """bool [windows, 1, L, L]: what rolling brought together from opposite borders does not see one another."""
        rows, columns = (torch.arange(side, device=device) >= side - self.shift for side in (height, width))
        part = (2 * rows[:, None] + columns.long())[None, :, :, None]
        part = as_tokens(cut_windows(part, (self.window, self.window)))[:, :, 0]
        return (part[:, :, None] == part[:, None, :])[:, None]


class NoPositions(nn.Module):
    """In place of LePE."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class RelativeStripes(StripeAttention):
    """Stripes with a learned bias per head and offset on the scores (as in Swin) instead of LePE; for one size of maps."""

    def __init__(self, plain: StripeAttention, side: int):
        super().__init__(plain.heads, plain.heads, plain.direction, plain.stripe)
        self.lepe = NoPositions()
        high, wide = (given or side for given in self.window())
        rows, columns = (axis.flatten() for axis in torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij"))
        offsets = (rows[:, None] - rows + high - 1) * (2 * wide - 1) + columns[:, None] - columns + wide - 1
        self.register_buffer("offsets", offsets)
        self.bias = nn.Parameter(torch.zeros((2 * high - 1) * (2 * wide - 1), self.heads))

    offsets: Tensor

    def attend(self, stripes: Tensor) -> Tensor:
        q, k, v = as_tokens(stripes).unflatten(-1, (self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        bias = self.bias[self.offsets].permute(2, 0, 1)[None].to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


class WithTable(nn.Module):
    """A stem whose tokens get a learned position each (as in ViT); the table is interpolated for maps of other sizes."""

    def __init__(self, stem: nn.Module, side: int, channels: int):
        super().__init__()
        self.stem = stem
        self.table = nn.Parameter(torch.empty(side, side, channels))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        height, width = x.shape[2:]
        table: Tensor = self.table
        if (height, width) != tuple(table.shape[:2]):
            table = resized_positions(self.table, (height, width)).view(height, width, -1)
        return x + table.permute(2, 0, 1)


def crossed(classes: int) -> nn.Module:
    return CSWin(**TRIAL, num_classes=classes)


def shifted(classes: int) -> nn.Module:
    """The same network with windows of 4x4; its last stage sees the whole map of 4x4 anyway."""
    model = CSWin(**TRIAL, num_classes=classes)
    for stage, heads, width in list(zip(model.stages, TRIAL["heads"], TRIAL["dims"]))[:-1]:
        assert isinstance(stage, Stage)
        for number, block in enumerate(stage.blocks):
            assert isinstance(block, CSWinBlock)
            block.attn = ShiftedWindows(width, heads, 4, 2 * (number % 2))  # type: ignore[assignment]
    return model


def unplaced(classes: int) -> CSWin:
    model = CSWin(**TRIAL, num_classes=classes)
    for module in model.modules():
        if isinstance(module, StripeAttention):
            module.lepe = NoPositions()
    return model


def absolute(classes: int) -> nn.Module:
    model = unplaced(classes)
    model.stem = WithTable(model.stem, 16, TRIAL["dims"][0])
    return model


def relative(classes: int) -> nn.Module:
    model = CSWin(**TRIAL, num_classes=classes)
    for stage, side in zip(model.stages, (16, 8, 4)):
        for module in list(stage.modules()):
            if isinstance(module, CrossShapedAttention):
                module.branches = nn.ModuleList(RelativeStripes(branch, side) for branch in module.branches)  # type: ignore[arg-type]
    return model


NETWORKS = {
    "CSWin": crossed,
    "shifted windows": shifted,
    "no positions": unplaced,
    "absolute": absolute,
    "relative": relative,
}


def trained(bench: Bench, *names: str) -> dict[str, list[dict[str, float]]]:
    """Accuracies at 32 and, but for relative positions, whose table has one size, at 48 pixels."""
    free = {name: NETWORKS[name] for name in names if name != "relative"}
    found = all_trained(bench, free, BUDGET, {LARGER: larger})
    if "relative" in names:
        found |= all_trained(bench, {"relative": relative}, BUDGET)
    return found


def windows(bench: Bench) -> Measured:
    found = trained(bench, "CSWin", "shifted windows")
    note = "; both cost the same number of multiply-accumulates"
    return lead(bench, found, "CSWin", "shifted windows", BUDGET.words(bench), note=note)


def positions(bench: Bench) -> Measured:
    """Points of the local encoding ahead of the best other one; those ahead of none are in the numbers."""
    found = trained(bench, "CSWin", "absolute", "relative", "no positions")
    best = max(("absolute", "relative", "no positions"), key=lambda name: math.fsum(run["top1"] for run in found[name]))
    measured = lead(bench, found, "CSWin", best, BUDGET.words(bench), note=f"; points ahead of {best}, the best other one")
    none = [a["top1"] - b["top1"] for a, b in zip(found["CSWin"], found["no positions"])]
    return replace(measured, numbers={**measured.numbers, "ahead of no positions": math.fsum(none) / len(none)})


def any_size(bench: Bench) -> Measured:
    """Points that the absolute positions lose more than the local ones from 32 to 48 pixels, without any training there."""
    sizes = ((32, 32), (33, 47), (96, 64), (101, 75), (224, 160))
    fits = all(_fits(size) for size in sizes)
    found = trained(bench, "CSWin", "absolute")
    losses = {name: [run["top1"] - run[LARGER] for run in runs] for name, runs in found.items()}
    more = [b - a for a, b in zip(losses["CSWin"], losses["absolute"])]
    words = ", ".join(f"{name} {math.fsum(each) / len(each):.2f}" for name, each in losses.items())
    detail = f"points lost at 48 pixels: {words}; {len(sizes)} sizes gave logits and maps of the right shape: {fits}"
    numbers = {"lost": losses, "every size fits": fits}
    return Measured(math.fsum(more) / len(more), BUDGET.words(bench), detail, more, list(bench.seeds), numbers, "points")


@torch.no_grad()
def _fits(size: tuple[int, int]) -> bool:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CSWinDense((8, 16, 24, 32), (1, 1, 1, 1), (2, 2, 2, 2), (1, 2, 7, None), num_classes=3).eval()
        image = torch.rand(1, 3, *size)
    maps = model.forward_intermediates(image, intermediates_only=True)
    near = all(
        abs(found - given / info["reduction"]) <= 1
        for each, info in zip(maps, model.feature_info)
        for found, given in zip(each.shape[2:], size)
    )
    return near and bool(model(image).isfinite().all())
