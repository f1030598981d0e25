"""What TiTok's claims are measured on: counts, and 1-D against 2-D codes trained with equally many operations."""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import mean
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paperworks.analysis.counting import count_macs
from paperworks.data import ImageSource
from paperworks.data.transforms import resize_shorter
from paperworks.generators.masked import MaskedTransformer
from paperworks.objectives.proxy_codes import ProxyCodes
from paperworks.objectives.tokenizer_training import TokenizerTraining
from paperworks.paper import Bench, Measured, write_json
from paperworks.papers._dit_cost import DiTCost
from paperworks.papers._generation import adamw, framed, open_split, perceptual_loss, training_images
from paperworks.tokenizers.maskgit_vqgan import MaskGITVQGAN
from paperworks.tokenizers.protocol import reconstruct
from paperworks.tokenizers.titok import TiTok
from paperworks.training import TrainConfig, fit

# --- counted ----------------------------------------------------------------------------------------------------------


def tokens() -> Measured:
    """With a small pixel decoder and few blocks; the number of ids does not depend on them."""
    torch.manual_seed(0)
    sizes = {"z_channels": 8, "ch": 8, "ch_mult": (1, 1, 1, 1, 1), "num_res_blocks": 1, "groups": 4}
    model = TiTok(256, 16, 32, (32, 1, 2), (32, 1, 2), proxy_codes=64, pixel_decoder=sizes).eval()
    (found,) = model.encode(torch.rand(1, 3, 256, 256))
    made = model.decode([found])
    bits = found.shape[1] * 12
    works = made.shape == (1, 3, 256, 256)
    return Measured(found.shape[1] if works else 0, "any", f"{bits} bits an image with 4096 codes; decodes to 256 pixels")


def grid_tokens() -> Measured:
    counts = {}
    for factor, levels in ((16, 5), (8, 4)):
        with torch.device("meta"):
            vqgan = MaskGITVQGAN(256, ch_mult=(1,) * levels)
            encoded = vqgan.encoder(torch.zeros(1, 3, 256, 256))
        counts[factor] = encoded.shape[2] * encoded.shape[3]
    right = counts[8] == 1024
    detail = f"factor 16: {counts[16]}, factor 8: {counts[8]}; {counts[16] // 32} and {counts[8] // 32} times 32"
    return Measured(counts[16] if right else 0, "any", detail)


def fewer_tokens() -> Measured:
    latents = (512 // 8) ** 2
    return Measured(latents / 64, "any", f"{latents / 4 / 64:.0f} times fewer than DiT's 2 x 2 patches of them")


GENERATORS: dict[str, dict[str, Any]] = {
    "L-64": {"vit": "large", "tokens": 64, "sizes": (768, 24, 16), "form": "bert", "steps": 8},
    "B-128": {"vit": "base", "tokens": 128, "sizes": (1024, 20, 16), "form": "uvit", "steps": 64},
}
"""at 512 pixels; generators as released for 256"""


def operations(name: str, diffusion_steps: int = 250) -> Measured:
    """Multiply-accumulates of a guided 512-pixel sample, both branches in every pass; TiTok's decoders included."""
    part = GENERATORS[name]
    count = part["tokens"]
    with torch.device("meta"):
        dit = count_macs(DiTCost(), torch.zeros(1, 1024, 16)) * 2 * diffusion_steps
        generator = MaskedTransformer(1000, count, 4096, *part["sizes"], form=part["form"])
        one_pass = count_macs(_Pass(generator), torch.zeros(1, count + 1, dtype=torch.int64))
        tokenizer = TiTok(512, 16, count, part["vit"], part["vit"], pixel_decoder={"z_channels": 256})
        decoding = count_macs(_Decoding(tokenizer), torch.zeros(1, count, 12))
    ours = one_pass * 2 * part["steps"] + decoding
    detail = (
        f"DiT-XL/2 {dit / 1e12:.0f} T in {diffusion_steps} steps; {count} tokens {ours / 1e12:.2f} T in {part['steps']} steps, "
        f"of which decoding {decoding / 1e12:.2f} T"
    )
    return Measured(dit / ours, "counted, 512 pixels, guided", detail, numbers={"DiT-XL/2": dit, "TiTok": ours})


class _Pass(nn.Module):
    def __init__(self, model: MaskedTransformer):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model.head(self.model.trunk(ids)[:, 1:])


class _Decoding(nn.Module):
    def __init__(self, model: TiTok):
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> Tensor:
        return self.model.decode_raw(features)


# --- 1-D against 2-D --------------------------------------------------------------------------------------------------

CODES, LATENTS = 512, 16
SIZES = {"z_channels": 16, "ch": 24, "num_res_blocks": 1, "groups": 8, "patch": 2}
STEPS = {"proxy": 200, "stage 1": 300, "stage 2": 100}
BATCH = 32


@dataclass(frozen=True)
class Setting:
    """Digits of one size; both sides code them by 16 codes, whatever the size."""

    side: int
    patch: int
    proxy: tuple[int, ...]
    """levels of the proxy, which shrinks by `patch`"""
    grid: tuple[int, ...]
    """levels of the 2-D tokenizer, which leaves 4 x 4 codes"""
    latents: tuple[int, ...] = (LATENTS,)


SMALL = Setting(32, 4, (1, 2), (1, 2, 4), (8, LATENTS, 32))
LARGE = Setting(64, 8, (1, 2, 4), (1, 2, 4, 4))


def competitive(bench: Bench) -> Measured:
    """Squared error on held-out digits of 16 codes without a grid over 16 codes on one."""
    found = [_errors(bench, SMALL, seed) for seed in bench.seeds]
    ratios = [errors["16"] / errors["grid"] for errors in found]
    means = _means(found)
    falls = [errors["8"] > errors["16"] > errors["32"] for errors in found]
    words = ", ".join(f"{name} codes {value}" for name, value in means.items() if name != "grid")
    detail = (
        f"error with {words}; 4 x 4 grid {means['grid']}; falls with the number of codes on {sum(falls)} of {len(found)} seeds"
    )
    scale = f"digits, 32 pixels, {CODES} codes, both sides as many operations in training"
    return Measured(mean(ratios), scale, detail, ratios, list(bench.seeds), means | {"falls": falls}, unit="x error")


def grows_with_resolution(bench: Bench) -> Measured:
    """The share of the grid's error that 16 codes without a grid save, at 64 pixels over 32."""
    found = {size.side: [_errors(bench, size, seed) for seed in bench.seeds] for size in (SMALL, LARGE)}
    saved = {side: [1 - errors["16"] / errors["grid"] for errors in rows] for side, rows in found.items()}
    gains = [large - small for small, large in zip(saved[SMALL.side], saved[LARGE.side])]
    means = {side: _means(rows) for side, rows in found.items()}
    detail = "; ".join(
        f"{side} pixels: {means[side]['16']} without a grid, {means[side]['grid']} on one, {mean(saved[side]):.1%} saved"
        for side in found
    )
    scale = f"digits, 32 and 64 pixels, {LATENTS} of {CODES} codes, both sides as many operations in training at either size"
    numbers = {f"{side} pixels": means[side] for side in found}
    return Measured(mean(gains), scale, detail, gains, list(bench.seeds), numbers, unit="of the grid's error")


def _means(found: list[dict[str, float]]) -> dict[str, Any]:
    return {name: round(mean(errors[name] for errors in found), 4) for name in found[0]}


def _errors(bench: Bench, size: Setting, seed: int) -> dict[str, float]:
    """By number of latents, and of the grid trained with as many operations as 16 latents were."""
    name = f"{size.side}px-{seed}"
    path = bench.folder / f"errors-{name}.json"
    if path.is_file():
        return json.loads(path.read_text())
    torch.manual_seed(seed)
    proxy = MaskGITVQGAN(size.side, 256, in_channels=1, ch_mult=size.proxy, **SIZES)
    errors: dict[str, float] = {}
    judged: dict[str, Any] = {"perceptual": perceptual_loss("pyramid")}
    _train(bench, TokenizerTraining(proxy, **judged), STEPS["proxy"], size, f"proxy-{name}", seed)
    spent = _cost(proxy, size) * STEPS["proxy"]
    for latents in size.latents:
        torch.manual_seed(seed)
        options: dict[str, Any] = {"vocab_size": CODES, "proxy_codes": 256, "in_channels": 1}
        sizes = (size.side, size.patch, latents, (128, 3, 4), (128, 3, 4))
        first = TiTok(*sizes, **options)
        _train(bench, ProxyCodes(first, proxy), STEPS["stage 1"], size, f"latents-{latents}-{name}", seed)
        second = TiTok(*sizes, pixel_decoder={"ch_mult": size.proxy, **SIZES}, **options)
        second.start_second_stage(first, proxy)
        learner = TokenizerTraining(second, codebook_weight=0.0, **judged)
        _train(bench, learner, STEPS["stage 2"], size, f"pixels-{latents}-{name}", seed)
        errors[str(latents)] = _error(second, size)
        if latents == LATENTS:
            # the teacher looks at every batch of stage 1; without a backward pass it costs less than it counts here
            spent += (_cost(first, size) + _cost(proxy.encoder, size)) * STEPS["stage 1"]
            spent += _cost(second, size) * STEPS["stage 2"]
    torch.manual_seed(seed)
    grid = MaskGITVQGAN(size.side, CODES, in_channels=1, ch_mult=size.grid, **SIZES)
    steps = round(spent / _cost(grid, size))
    _train(bench, TokenizerTraining(grid, **judged), steps, size, f"grid-{name}", seed)
    errors["grid"] = _error(grid, size)
    write_json(path, errors)
    bench.say(f"  {size.side} pixels, seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in errors.items()))
    return errors


def _train(bench: Bench, learner: TokenizerTraining, steps: int, size: Setting, name: str, seed: int) -> None:
    config = TrainConfig(steps, BATCH, optimizers={"main": adamw(2e-3)}, clip=1.0, seed=seed, checkpoint_every=10**9)
    data = training_images(_digits("train", size.side), size.side, seed, BATCH)
    fit(learner, data, config, bench.folder / name, label=name)


def _digits(split: Literal["train", "test"], side: int) -> ImageSource:
    """Digits enlarged as much as `side` is larger than 32, so that they fill as much of the picture."""
    source = open_split("default", split, channels=1)
    images = resize_shorter(source.images, source.images.shape[-1] * side // 32)
    return ImageSource.from_tensor(images, source.labels, name=source.name, licence=source.licence)


def _cost(part: nn.Module, size: Setting) -> int:
    """Multiply-accumulates of one image's way through a part; a training step takes three times as many."""
    return count_macs(part, torch.zeros(1, 1, size.side, size.side))


def _error(tokenizer: Any, size: Setting) -> float:
    images = framed(_digits("test", size.side), size.side)
    rebuilt, _ = reconstruct(tokenizer.eval(), images)
    return float((rebuilt - images).square().mean())
