"""What VAR's claims are measured on: exact counts, sampling times at the published width, and small generators trained side by
side on the same digits, one seed after the other, kept in the bench's folder."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.analysis.digits import DigitClassifier, digit_classifier
from paperworks.analysis.metrics import frechet_distance, inception_score
from paperworks.analysis.scaling_laws import fit_power_law
from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.generators.next_scale import SCALES_256, NextScaleTransformer
from paperworks.generators.next_scale_sampling import Edit, inpaint, sample
from paperworks.generators.next_token import NextTokenTransformer, sample_tokens
from paperworks.objectives.token_prediction import TokenPrediction, negative_log_likelihood
from paperworks.paper import Bench, write_json
from paperworks.papers._generation import (
    TensorSet,
    adamw,
    framed,
    framed_at_random,
    labels_of,
    open_split,
    tokenizer_training,
    training_images,
)
from paperworks.papers._var_recipe import TokenizerConfig, VARConfig, averaged_model, tokenize, tokenizer_objective
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQVAE
from paperworks.training import TrainConfig, fit

CHECKPOINTS = 3
IMAGES = 500
TOKENIZER_STEPS, STEPS = 900, 600
DEPTH, DIM, HEADS = 4, 128, 2


# --- exact ------------------------------------------------------------------------------------------------------------


def count_passes(grid: int = 16) -> tuple[int, int]:
    """Network passes that one 256-pixel image takes, counted while sampling: next-scale, next-token on the same last grid."""
    passes = {"scale": 0, "token": 0}

    tokenizer = MultiScaleVQVAE(8, 4, 8, (1,), 1, SCALES_256, groups=4, in_channels=1)
    ours = NextScaleTransformer(2, 1, 8, 1, SCALES_256, 8, 4)
    theirs = NextTokenTransformer(2, 1, 8, 1, grid * grid, 8)
    hooks = [
        ours.head_nm.register_forward_hook(lambda *_: passes.__setitem__("scale", passes["scale"] + 1)),
        theirs.head_nm.register_forward_hook(lambda *_: passes.__setitem__("token", passes["token"] + 1)),
    ]
    labels = torch.zeros(1, dtype=torch.int64)
    sample(ours, tokenizer, labels, Draws.seeded(0, 1))
    sample_tokens(theirs, labels, Draws.seeded(0, 1))
    for hook in hooks:
        hook.remove()
    return passes["scale"], passes["token"]


def attention_exponents(sides: Sequence[int] = (64, 128, 256, 512, 1024)) -> tuple[float, float]:
    """Exponents of n in the attention cost of generating n x n tokens without a cache (VAR, appendix D): next-token attends
    over i tokens in step i of n^2; next-scale over all tokens so far in each of about log n scales, each side doubling."""
    token = [n * (n + 1) * (2 * n + 1) // 6 for n in (side * side for side in sides)]  # 1 + 4 + 9 + ... + n^2
    scale = []
    for side in sides:
        maps = [2**k for k in range(int(math.log2(side)) + 1)]
        seen = [sum(size * size for size in maps[: k + 1]) for k in range(len(maps))]
        scale.append(sum(count * count for count in seen))
    return fit_power_law(sides, token).b, fit_power_law(sides, scale).b


# --- speed ------------------------------------------------------------------------------------------------------------


def sampling_seconds(rounds: int = 3, depth: int = 16, say: Any = print) -> list[tuple[float, float]]:
    """(next-scale, next-token) seconds for one guided 256-pixel token map at the width of d16, random weights, both with
    cached keys and values, alternately."""
    dtype = torch.bfloat16
    tokenizer = MultiScaleVQVAE(4096, 32, 32, (1, 1), 1, SCALES_256).eval()
    ours = NextScaleTransformer(1000, depth, 64 * depth, depth).to(dtype).eval()
    theirs = NextTokenTransformer(1000, depth, 64 * depth, depth, 256).to(dtype).eval()
    labels = torch.tensor([3])

    def scales() -> None:
        sample(ours, tokenizer, labels, Draws.seeded(0, 1), top_k=900, top_p=0.96)

    def tokens() -> None:
        sample_tokens(theirs, labels, Draws.seeded(0, 1), top_k=900, top_p=0.96)

    scales()
    times = []
    for number in range(rounds):
        pair = {}
        for work in (scales, tokens) if number % 2 == 0 else (tokens, scales):
            started = time.perf_counter()
            work()
            pair[work] = time.perf_counter() - started
        times.append((pair[scales], pair[tokens]))
        say(f"  round {number + 1}: next-scale {pair[scales]:.2f} s, next-token {pair[tokens]:.2f} s")
    return times


# --- small generators side by side ------------------------------------------------------------------------------------


def _config(bench: Bench, seed: int, patch_nums: tuple[int, ...]) -> VARConfig:
    if bench.data not in ("default", "mnist5k"):
        raise InputError("VAR's claims are judged by a digit classifier: leave --data at its default")
    return VARConfig(
        data=bench.data,
        seed=seed,
        copies=2,
        tokenizer=TokenizerConfig(patch_nums=patch_nums),
        tokenizer_training=replace(tokenizer_training(TOKENIZER_STEPS, 32, 2e-3), seed=seed),
        transformer_training=TrainConfig(STEPS, 64, optimizers={"main": adamw(1.5e-3)}, clip=2.0, ema=0.99, seed=seed),
    )


def trained_tokenizer(bench: Bench, config: VARConfig, name: str) -> MultiScaleVQVAE:
    """The same network and budget on both sides; the raster side has the last map only, which is a plain VQGAN tokenizer."""
    folder = bench.folder / f"{name}-tokenizer-seed{config.seed}"
    source = open_split(config.data, "train", channels=config.channels)
    data = training_images(source, config.image_size, config.seed, config.tokenizer_training.batch_size)
    objective = tokenizer_objective(config)
    fit(objective, data, config.tokenizer_training, folder, label=f"{name} tokenizer, seed {config.seed}")
    tokenizer = objective.tokenizer
    assert isinstance(tokenizer, MultiScaleVQVAE)
    return tokenizer.eval()


def token_sets(config: VARConfig, tokenizer: MultiScaleVQVAE) -> tuple[TensorSet, TensorSet]:
    """Tokens of the training images (framed at random, `copies` times) and of the test images."""
    source = open_split(config.data, "train", channels=config.channels)
    copies = [framed_at_random(source, config.image_size, config.seed + 1 + copy) for copy in range(config.copies)]
    test = open_split(config.data, "test", channels=config.channels)
    return (
        tokenize(tokenizer, torch.cat(copies), labels_of(source).repeat(config.copies)),
        tokenize(tokenizer, framed(test, config.image_size), labels_of(test)),
    )


def side_by_side(bench: Bench, seed: int) -> dict[str, Any]:
    """Next-scale and raster-order generator of one width, depth and training time; distances at equal times. Kept in a file."""
    path = bench.folder / f"side-by-side-seed{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    bench.folder.mkdir(parents=True, exist_ok=True)
    judge = digit_classifier(bench.folder / "judge")
    ours, theirs = _config(bench, seed, (1, 2, 3, 4)), _config(bench, seed, (4,))
    tokenizers = {"scale": trained_tokenizer(bench, ours, "scale"), "token": trained_tokenizer(bench, theirs, "token")}
    sets = {name: token_sets(ours, tokenizer) for name, tokenizer in tokenizers.items()}
    torch.manual_seed(seed)
    models: dict[str, nn.Module] = {
        "scale": NextScaleTransformer(10, DEPTH, DIM, HEADS, (1, 2, 3, 4), 256, 16),
        "token": NextTokenTransformer(10, DEPTH, DIM, HEADS, 16, 256),
    }
    train, test = sets["token"]
    sets["token"] = (_without_inputs(train), _without_inputs(test))  # raster order is fed its own tokens
    pace = {name: _seconds_per_step(models[name], sets[name][0], ours.transformer_training) for name in models}
    steps = {"scale": STEPS, "token": round(STEPS * pace["scale"] / pace["token"])}
    real = framed(open_split(ours.data, "test", channels=ours.channels), ours.image_size)
    with torch.inference_mode():
        real_features = judge.features(real)
    found: dict[str, Any] = {"pace": pace, "steps": steps, "distance": {}, "score": {}, "recognised": {}, "seconds": {}}
    for name, model in models.items():
        _train_and_judge(bench, ours, name, model, tokenizers[name], sets[name], steps[name], seed, judge, real_features, found)
    write_json(path, found)
    return found


def _train_and_judge(
    bench: Bench,
    config: VARConfig,
    name: str,
    model: nn.Module,
    tokenizer: MultiScaleVQVAE,
    sets: tuple[Any, Any],
    steps: int,
    seed: int,
    judge: DigitClassifier,
    real: Tensor,
    found: dict[str, Any],
) -> None:
    labels = torch.arange(IMAGES) % 10
    trail: list[dict[str, float]] = []

    def look(objective: Any, ctx: Any) -> dict[str, float]:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):  # images and features in full precision
            made = _make(objective.model, tokenizer, labels, seed)
            features, logits = judge.features(made), judge.logits(made)
        trail.append(
            {
                "distance": frechet_distance(real, features),
                "score": inception_score(logits.softmax(1)),
                "recognised": float((logits.argmax(1) == labels).float().mean()),
            }
        )
        return trail[-1]

    budget = replace(config.transformer_training, steps=steps, eval_every=steps // CHECKPOINTS, checkpoint_every=10**9)
    folder = bench.folder / f"{name}-transformer-seed{seed}"
    fitted = fit(TokenPrediction(model), sets[0], budget, folder, evaluate=look, label=f"next-{name}, seed {seed}")
    for key in ("distance", "score", "recognised"):
        found[key][name] = [round(row[key], 4) for row in trail[:CHECKPOINTS]]
    found["seconds"][name] = round(fitted.seconds, 1)
    held_out = sets[1].batch(list(range(len(sets[1]))))
    nats = negative_log_likelihood(averaged_model(fitted), [held_out]) * held_out["tokens"].shape[1]
    found.setdefault("held_out_nats_per_image", {})[name] = round(nats, 2)
    bench.say(f"  seed {seed}, next-{name}: distance {found['distance'][name]}, recognised {found['recognised'][name]}")


@torch.inference_mode()
def _make(model: nn.Module, tokenizer: MultiScaleVQVAE, labels: Tensor, seed: int) -> Tensor:
    draws = Draws.seeded(seed + 77, len(labels))
    if isinstance(model, NextScaleTransformer):
        return tokenizer.decode_features(sample(model, tokenizer, labels, draws, top_p=0.96).features)
    assert isinstance(model, NextTokenTransformer)
    return tokenizer.decode([sample_tokens(model, labels, draws, top_p=0.96)])


def _without_inputs(data: TensorSet) -> TensorSet:
    """Without teacher-forcing inputs: the objective then feeds the tokens themselves."""
    return TensorSet(tokens=data.columns["tokens"], label=data.columns["label"])


def _seconds_per_step(model: nn.Module, data: TensorSet, config: TrainConfig, steps: int = 8) -> float:
    """Median time of a training step on a copy of the network."""
    from paperworks.training.objective import Context
    from paperworks.training.precision import autocast, resolve

    objective = TokenPrediction(model)
    times = []
    for step in range(steps):
        batch = data.batch(list(range(step * config.batch_size, (step + 1) * config.batch_size)))
        started = time.perf_counter()
        with autocast(resolve(config.precision, torch.device("cpu")), torch.device("cpu")):
            loss = objective.loss(batch, "main", Context(step, steps, 0))
        loss.total.backward()
        times.append(time.perf_counter() - started)
        model.zero_grad(set_to_none=True)
    return median(times[2:])


# --- editing ----------------------------------------------------------------------------------------------------------


def edit_without_training(bench: Bench, seed: int) -> dict[str, Any]:
    """Fill the centre, the lower half and the surroundings of test digits with the generator of `side_by_side`."""
    path = bench.folder / f"editing-seed{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    side_by_side(bench, seed)
    config, judge = _config(bench, seed, (1, 2, 3, 4)), digit_classifier(bench.folder / "judge")
    tokenizer = trained_tokenizer(bench, config, "scale")
    model = NextScaleTransformer(10, DEPTH, DIM, HEADS, (1, 2, 3, 4), 256, 16)
    budget = replace(config.transformer_training, steps=STEPS, eval_every=STEPS // CHECKPOINTS, checkpoint_every=10**9)
    folder = bench.folder / f"scale-transformer-seed{seed}"
    fitted = fit(TokenPrediction(model), token_sets(config, tokenizer)[0], budget, folder, label="")
    generator = averaged_model(fitted)
    assert isinstance(generator, NextScaleTransformer)
    test = open_split(config.data, "test", channels=config.channels)
    images, truth = framed(test, 32, 300), labels_of(test)[:300]
    others = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
    nobody = torch.full_like(truth, generator.num_classes)
    centre, lower = torch.zeros(32, 32), torch.zeros(32, 32)
    centre[8:24, 8:24] = 1
    lower[16:] = 1
    found: dict[str, Any] = {"error": {}, "error_of_another_digit": {}}
    for number, (name, hole) in enumerate({"centre": centre, "lower half": lower, "surroundings": 1 - centre}.items()):
        made = inpaint(generator, tokenizer, images, hole, nobody, Draws.seeded(seed + number, 300), guidance=0, top_p=0.96)
        found["error"][name] = float(((made - images).square() * hole).sum() / hole.sum() / len(images))
        found["error_of_another_digit"][name] = float(((others - images).square() * hole).sum() / hole.sum() / len(images))
    target = (truth + 1) % 10
    edited = inpaint(generator, tokenizer, images, centre, target, Draws.seeded(seed + 9, 300), paste=False, top_p=0.96)
    with torch.inference_mode():
        found["edited_to_target"] = float((judge.logits(edited).argmax(1) == target).float().mean())
    found["kept_tokens_exact"] = _keeping_all_is_reconstruction(generator, tokenizer, images[:50], nobody[:50])
    found["ratio"] = max(found["error"][name] / found["error_of_another_digit"][name] for name in found["error"])
    write_json(path, found)
    return found


def _keeping_all_is_reconstruction(
    model: NextScaleTransformer, tokenizer: MultiScaleVQVAE, images: Tensor, labels: Tensor
) -> bool:
    """With every position kept, the accumulated features must be those of the image's own tokens, bit for bit."""
    with torch.inference_mode():
        indices = tokenizer.encode(images)
        keep = [torch.ones(1, 1, side, side) for side in model.patch_nums]
        drawn = sample(model, tokenizer, labels, Draws.seeded(0, len(images)), edit=Edit(indices, keep))
        return torch.equal(drawn.features, tokenizer.quantize.features_of(indices)[-1])


# --- scaling ----------------------------------------------------------------------------------------------------------

WIDTHS = (32, 64, 96, 160)


def scaling(bench: Bench, seed: int) -> dict[str, Any]:
    """Held-out loss of four widths after the same number of steps, and the power law through them."""
    path = bench.folder / f"scaling-seed{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    config = _config(bench, seed, (1, 2, 3, 4))
    tokenizer = trained_tokenizer(bench, config, "scale")
    train, test = token_sets(config, tokenizer)
    losses, sizes = [], []
    for width in WIDTHS:
        torch.manual_seed(seed)
        model = NextScaleTransformer(10, DEPTH, width, max(1, width // 32), (1, 2, 3, 4), 256, 16)
        budget = replace(config.transformer_training, steps=200, checkpoint_every=10**9)
        folder = bench.folder / f"width{width}-seed{seed}"
        fitted = fit(TokenPrediction(model), train, budget, folder, label=f"width {width}, seed {seed}")
        losses.append(negative_log_likelihood(averaged_model(fitted), [test.batch(list(range(len(test))))]))
        sizes.append(sum(p.numel() for p in model.parameters()))
    law = fit_power_law(sizes, losses)
    found = {"parameters": sizes, "losses": losses, "exponent": law.b, "correlation": law.correlation}
    write_json(path, found)
    bench.say(f"  seed {seed}: losses {[round(loss, 3) for loss in losses]}, correlation {law.correlation:.4f}")
    return found
