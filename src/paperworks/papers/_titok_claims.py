"""What TiTok's claims are measured on: counts, and 1-D against 2-D codes trained with equally many operations."""

from __future__ import annotations

import json
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.analysis.counting import count_macs
from paperworks.generators.masked import MaskedTransformer
from paperworks.objectives.proxy_codes import ProxyCodes
from paperworks.objectives.tokenizer_training import TokenizerTraining
from paperworks.paper import Bench, Measured, write_json
from paperworks.papers._dit_cost import DiTCost
from paperworks.papers._generation import adamw, framed, open_split, open_test, perceptual_loss, training_images
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

CODES, LATENTS = 512, (8, 16, 32)
SIZES = {"z_channels": 16, "ch": 24, "num_res_blocks": 1, "groups": 8, "patch": 2}
STEPS = {"proxy": 200, "stage 1": 300, "stage 2": 100}
BATCH = 32


def competitive(bench: Bench) -> Measured:
    """Squared error on held-out digits of 16 codes without a grid over 16 codes on one."""
    found = [_errors(bench, seed) for seed in bench.seeds]
    ratios = [errors["16"] / errors["grid"] for errors in found]
    means = {name: round(mean(errors[name] for errors in found), 4) for name in found[0]}
    falls = sum(errors["8"] > errors["16"] > errors["32"] for errors in found)
    words = ", ".join(f"{name} codes {value}" for name, value in means.items() if name != "grid")
    detail = f"error with {words}; 4 x 4 grid {means['grid']}; falls with the number of codes on {falls} of {len(found)} seeds"
    scale = f"digits, 32 pixels, {CODES} codes, both sides as many operations in training"
    return Measured(mean(ratios), scale, detail, ratios, list(bench.seeds), dict(means), unit="x error")


def _errors(bench: Bench, seed: int) -> dict[str, float]:
    path = bench.folder / f"codes-{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    torch.manual_seed(seed)
    proxy = MaskGITVQGAN(32, 256, in_channels=1, ch_mult=(1, 2), **SIZES)
    errors: dict[str, float] = {}
    _train(bench, TokenizerTraining(proxy, perceptual=perceptual_loss("pyramid")), STEPS["proxy"], f"proxy-{seed}", seed)
    spent = _cost(proxy) * STEPS["proxy"]
    for latents in LATENTS:
        torch.manual_seed(seed)
        options: dict[str, Any] = {"vocab_size": CODES, "proxy_codes": 256, "in_channels": 1}
        first = TiTok(32, 4, latents, (128, 3, 4), (128, 3, 4), **options)
        _train(bench, ProxyCodes(first, proxy), STEPS["stage 1"], f"latents-{latents}-{seed}", seed)
        second = TiTok(32, 4, latents, (128, 3, 4), (128, 3, 4), pixel_decoder={"ch_mult": (1, 2), **SIZES}, **options)
        second.start_second_stage(first, proxy)
        learner = TokenizerTraining(second, perceptual=perceptual_loss("pyramid"), codebook_weight=0.0)
        _train(bench, learner, STEPS["stage 2"], f"pixels-{latents}-{seed}", seed)
        errors[str(latents)] = _error(second)
        if latents == 16:
            spent += _cost(first) * STEPS["stage 1"] + _cost(second) * STEPS["stage 2"]
    torch.manual_seed(seed)
    grid = MaskGITVQGAN(32, CODES, in_channels=1, ch_mult=(1, 2, 4), **SIZES)
    steps = round(spent / _cost(grid))
    _train(bench, TokenizerTraining(grid, perceptual=perceptual_loss("pyramid")), steps, f"grid-{seed}", seed)
    errors["grid"] = _error(grid)
    write_json(path, errors)
    bench.say(f"  seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in errors.items()))
    return errors


def _train(bench: Bench, learner: TokenizerTraining, steps: int, name: str, seed: int) -> None:
    config = TrainConfig(steps, BATCH, optimizers={"main": adamw(2e-3)}, clip=1.0, seed=seed, checkpoint_every=10**9)
    data = training_images(open_split("default", "train", channels=1), 32, seed, BATCH)
    fit(learner, data, config, bench.folder / name, label=name)


def _cost(tokenizer: Any) -> int:
    """Multiply-accumulates of a reconstruction, stage 1's proxy codes included."""
    tokenizer.eval()
    return count_macs(tokenizer, torch.zeros(1, 1, 32, 32))


def _error(tokenizer: Any) -> float:
    images = framed(open_test("default", channels=1), 32)
    rebuilt, _ = reconstruct(tokenizer.eval(), images)
    return float((rebuilt - images).square().mean())
