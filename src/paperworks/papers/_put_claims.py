"""What PUT's claims are measured on: photos as others shrink them, counts, and small models that read features or codes."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.analysis.counting import count_macs
from paperworks.analysis.metrics import psnr
from paperworks.data import open_images
from paperworks.data.masks import draw_holes
from paperworks.data.transforms import to_float
from paperworks.generators.draws import Draws
from paperworks.generators.unquantized import UnquantizedTransformer
from paperworks.generators.unquantized_sampling import FillConfig, inpaint
from paperworks.objectives.unquantized_prediction import UnquantizedPrediction
from paperworks.paper import Bench, Measured, Recipe, Run, Stage, write_json
from paperworks.papers._generation import open_split
from paperworks.papers._put_recipe import PUTConfig, held_out, load_codec, train_codec, training_set, transformer_objective
from paperworks.papers._put_report import token_numbers
from paperworks.tokenizers.patch_vqvae import PatchVQVAE
from paperworks.training import fit

# --- what earlier methods lose ----------------------------------------------------------------------------------------


def _photos(limit: int = 256) -> list[Tensor]:
    """The embedded photos' centres, [C, 256, 256] in [0, 1], where they are large enough."""
    source, found = open_images("photos", labels="none", channels=3), []
    for number in range(len(source)):
        pixels = to_float(source.read(number))
        height, width = pixels.shape[-2:]
        if min(height, width) >= limit:
            top, left = (height - limit) // 2, (width - limit) // 2
            found.append(pixels[:, top : top + limit, left : left + limit])
    return found


def shrinking() -> Measured:
    """To 32 pixels and back, as transformers over pixels worked, and to 48 and 64."""
    photos = torch.stack(_photos())
    found = {}
    for side in (32, 48, 64):
        small = F.interpolate(photos, size=(side, side), mode="area")
        back = F.interpolate(small, size=photos.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
        found[side] = psnr(back, photos)
    words = ", ".join(f"{side} pixels {value:.1f} dB" for side, value in found.items())
    scale = f"{len(photos)} embedded photos of 256 pixels; PUT's own input is lossless"
    return Measured(max(found.values()), scale, words, numbers={str(side): value for side, value in found.items()}, unit="dB")


def palette(colours: int = 512, steps: int = 8) -> Measured:
    """k-means of the photos' own colours, so the best palette of that size that can be had."""
    pixels = torch.cat([photo.flatten(1).T for photo in _photos()])
    generator = torch.Generator().manual_seed(0)
    some = pixels[torch.randperm(len(pixels), generator=generator)[:50_000]]
    centres = some[:colours].clone()
    for _ in range(steps):
        nearest = torch.cdist(some, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, some)
        counts = torch.bincount(nearest, minlength=colours)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    chosen = torch.cat([torch.cdist(part, centres).argmin(1) for part in pixels.split(50_000)])
    used, before = len(chosen.unique()), len((pixels * 255).round().long().unique(dim=0))
    loss = float(-10 * (centres[chosen] - pixels).square().mean().log10())
    detail = f"{before:,} different colours become {used}: {loss:.1f} dB; PUT reads all of them"
    return Measured(used if loss < 60 else 0, "embedded photos of 256 pixels", detail, numbers={"dB": loss, "before": before})


# --- the parts --------------------------------------------------------------------------------------------------------


def patches_apart() -> Measured:
    """How many features of known patches change when the hole's pixels do; beside it, a convolutional encoder's."""
    torch.manual_seed(0)
    codec = PatchVQVAE(64, patch=8, width=32, channels=16, code_dim=16, vocab_size=32, clean_codes=16).eval()
    images, other = torch.rand(2, 4, 3, 64, 64)
    hole = torch.zeros(4, 1, 64, 64, dtype=torch.bool)
    hole[:, :, 16:48, 16:48] = True
    known = ~hole
    changed = torch.where(hole, other, images)
    whole = F.avg_pool2d(known.float(), 8)[:, 0] == 1

    def moved(one: Tensor, two: Tensor) -> int:
        return int((one != two).any(-1)[whole].sum())

    with torch.no_grad():
        ours = moved(codec.features(images), codec.features(changed))
        convolution = nn.Sequential(nn.Conv2d(3, 16, 8, 8), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        theirs = moved(convolution(images).movedim(1, -1), convolution(changed).movedim(1, -1))
    detail = f"{ours} of {int(whole.sum())} known patches' features change with the hole; {theirs} of a convolutional encoder's"
    return Measured(ours if theirs else -1, "any", detail, numbers={"convolutional": theirs})


def _small() -> tuple[UnquantizedTransformer, PatchVQVAE]:
    torch.manual_seed(0)
    codec = PatchVQVAE(32, patch=4, width=32, channels=16, code_dim=16, vocab_size=64, clean_codes=48).eval()
    spec = codec.spec
    return UnquantizedTransformer(16, spec.tokens, spec.vocab_size, 32, 2, 2, codec=spec.id).eval(), codec


def known_pixels() -> Measured:
    """Largest difference of a known pixel in completions of held-out crops, and what the decoder alone would change."""
    model, codec = _small()
    images, holes = held_out(PUTConfig(), count=20)
    made, raw = (
        inpaint(model, codec, images, holes, Draws.seeded(0, 20), FillConfig(-1), paste=paste) for paste in (True, False)
    )
    outside = ~holes[:, None]
    worst, alone = (float(((each - images).abs() * outside).max()) for each in (made, raw))
    detail = f"{alone:.3f} by the decoder alone, before known pixels are put back (untrained)"
    return Measured(worst, "20 crops of photos", detail, numbers={"decoder alone": alone})


def several() -> Measured:
    """Pairs of three completions that differ in the hole and agree outside it."""
    model, codec = _small()
    images, holes = held_out(PUTConfig(), count=10)
    made = [inpaint(model, codec, images, holes, Draws.seeded(seed, 10), FillConfig(4)) for seed in range(3)]
    outside, works = ~holes[:, None], 0
    for one, two in ((0, 1), (0, 2), (1, 2)):
        apart = (made[one] - made[two]).abs()
        differ = bool(((apart * ~outside).flatten(1).amax(1) > 0).all())
        works += differ and float((apart * outside).max()) == 0
    return Measured(works, "10 crops of photos, 3 completions", "pairs that differ in every hole and nowhere else")


def tokens() -> Measured:
    """Positions of a 256-pixel image as 8 x 8 patches, against one position per pixel."""
    with torch.device("meta"):
        codec = PatchVQVAE(256)
        model = UnquantizedTransformer(256, 1024, 512)
        macs = count_macs(model, torch.zeros(1, 1024, 512))
    count, pixels = (256 // codec.patch) ** 2, 256 * 256
    width, layers = 512, 30
    attention = [2 * layers * width * length**2 for length in (count, pixels)]
    detail = (
        f"{pixels} with one per pixel, whose attention costs {attention[1] / attention[0]:,.0f} times as much; "
        f"a pass takes {macs / 1e9:.0f} G multiply-accumulates"
    )
    return Measured(count, "any; 256 pixels", detail, numbers={"pixels": pixels, "attention": attention})


# --- features against codes -------------------------------------------------------------------------------------------

STEPS = {"codec": 400, "transformer": 250}
SHARES = {"small": (0.1, 0.2), "large": (0.4, 0.6)}


def _gains(bench: Bench) -> dict[str, dict[str, float]]:
    """Per seed: nats a patch that features save over codes as input, for small and large holes."""
    base = PUTConfig()
    config = replace(base, crops=6000, codec_training=replace(base.codec_training, steps=STEPS["codec"]), held_out=300)
    run = Run.open(
        bench.folder / "codec", slug="put", recipe="check", arguments={}, config=config, command="paperworks check put"
    )
    run.execute(Recipe(config, (Stage("codec", train_codec),)), say=bench.say)
    codec = load_codec(run)
    images, _ = held_out(config)
    plain = replace(config.holes, strokes=1.0, boxes=0.0, halves=0.0, drawn="hole", smallest=0.0)
    holes = {
        name: draw_holes(range(len(images)), (config.image_size,) * 2, replace(plain, share=share), seed=7)
        for name, share in SHARES.items()
    }
    found = {}
    for seed in bench.seeds:
        path = bench.folder / f"inputs-{seed}.json"
        if not path.is_file():
            nats: dict[str, float] = {}
            kinds: tuple[Any, ...] = ("continuous", "quantized")
            for kind in kinds:
                part = replace(config, transformer=replace(config.transformer, features=kind))
                model = _transformer(bench, part, codec, seed)
                for name, hole in holes.items():
                    nats[f"{kind} {name}"] = token_numbers(model, codec, images, hole, part)[0]
            write_json(path, nats)
        row = json.loads(path.read_text())
        found[str(seed)] = row | {name: row[f"quantized {name}"] - row[f"continuous {name}"] for name in SHARES}
        bench.say(f"  seed {seed}: features save {found[str(seed)]['large']:.3f} nats a patch in large holes")
    return found


def _transformer(bench: Bench, config: PUTConfig, codec: PatchVQVAE, seed: int) -> UnquantizedTransformer:
    steps = replace(config.transformer_training, steps=STEPS["transformer"], checkpoint_every=10**9)
    source = open_split(config.data, "train", channels=config.channels)
    learner = transformer_objective(config, codec, seed)
    folder = bench.folder / f"{config.transformer.features}-{seed}"
    data = training_set(replace(config, seed=seed), source, steps.batch_size)
    best = fit(learner, data, steps, folder, label=f"{config.transformer.features} input, seed {seed}").averaged
    assert isinstance(best, UnquantizedPrediction)
    return best.model.eval()


def features_against_codes(bench: Bench) -> Measured:
    found = _gains(bench)
    gains = [found[str(seed)]["large"] for seed in bench.seeds]
    means = {kind: mean(row[f"{kind} large"] for row in found.values()) for kind in ("continuous", "quantized")}
    detail = f"cross-entropy in the hole {means['continuous']:.3f} nats a patch, reading codes {means['quantized']:.3f}"
    return Measured(mean(gains), _scale(), detail, gains, list(bench.seeds), found, "nats")


def larger_holes(bench: Bench) -> Measured:
    found = _gains(bench)
    leads = [found[str(seed)]["large"] - found[str(seed)]["small"] for seed in bench.seeds]
    means = {name: mean(row[name] for row in found.values()) for name in SHARES}
    detail = (
        f"features save {means['large']:.3f} nats a patch in holes of 40 to 60 %, {means['small']:.3f} in holes of 10 to 20 %"
    )
    return Measured(mean(leads), _scale(), detail, leads, list(bench.seeds), found, "nats")


def _scale() -> str:
    part = PUTConfig().transformer
    return f"32-pixel crops of photos, one codec, {part.layers} x {part.dim} transformers, {STEPS['transformer']} steps a side"
