"""What HMAR's claims are measured on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.analysis.metrics import frechet_distance
from paperworks.analysis.timing import alternate
from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.generators.masked_scale import MaskedScaleTransformer
from paperworks.generators.masked_scale_sampling import Schedule, inpaint, sample
from paperworks.generators.next_scale import SCALES_256, SCALES_512, SCALES_1024, NextScaleTransformer
from paperworks.generators.next_scale_sampling import image_keep_mask, keep_masks
from paperworks.generators.next_scale_sampling import sample as sample_var
from paperworks.layers.block_causal import block_causal_mask, block_diagonal_attention
from paperworks.objectives.scale_training import ScaleTraining
from paperworks.paper import Bench, Measured, Recipe, Run, write_json
from paperworks.papers._generation import framed, labels_of, open_split
from paperworks.papers._generation_report import Judge, in_batches
from paperworks.papers._hmar_recipe import schedules as three
from paperworks.papers._token_recipe import Kit, tokenize, training_tokens
from paperworks.tokenizers.multi_scale_quantizer import MultiScaleVQ
from paperworks.training import fit

# --- counted ----------------------------------------------------------------------------------------------------------


def _tokens(sides: Sequence[int]) -> int:
    return sum(side * side for side in sides)


def sequence_growth() -> Measured:
    lengths = [_tokens(sides) for sides in (SCALES_256, SCALES_512, SCALES_1024)]
    growth = [after / before for before, after in pairwise(lengths)]
    per_pixel = " and ".join(f"{ratio / 4:.2f}" for ratio in growth)
    detail = f"{' / '.join(map(str, lengths))} tokens at 256 / 512 / 1024 pixels; {per_pixel} times as many per pixel"
    return Measured(min(growth), "any", detail, numbers={"tokens": lengths, "growth": growth})


VAR_D30, HMAR_D30 = 2010.02e6, 2556.32e6
"""parameters"""


def memory(depth: int = 30) -> Measured:
    """Two bytes a number, guided (two rows an image). VAR holds keys and values of all layers for all scales; both hold one
    scale's activations in one layer: the residual stream, fused projections and the hidden layer, (1 + 3 + 4) x width, or
    its logits over 4096 codes in four bytes, whichever is more. Weights are VAR's and HMAR's own."""
    width, rows, found = 64 * depth, 2, {}
    for name, sides in {"256": SCALES_256, "512": SCALES_512, "1024": SCALES_1024}.items():
        cache = 2 * depth * width * _tokens(sides) * rows * 2
        live = max(8 * width * 2, 4096 * 4) * sides[-1] ** 2 * rows
        # images in a batch from which the totals, weights included, differ threefold: W + b (cache + live) >= 3 (W' + b live)
        excess = cache - 2 * live
        batch = math.ceil((3 * HMAR_D30 - VAR_D30) * 2 / excess) if excess > 0 else math.inf
        found[name] = {"cache": cache / 1e6, "live": live / 1e6, "ratio": (cache + live) / live, "threefold batch": batch}
    words = "; ".join(
        f"{name} px: cache {part['cache']:.0f} MB, live {part['live']:.0f} MB, with the weights three times less from batches "
        f"of {part['threefold batch']:.0f}"
        for name, part in found.items()
    )
    worst = min(part["ratio"] for part in found.values())
    return Measured(worst, f"any; d{depth}, float16, weights not counted", words, numbers=found)


# --- timed ------------------------------------------------------------------------------------------------------------


def attention_speed(bench: Bench) -> Measured:
    """Against one call with a dense block-causal mask, as VAR trains; the smaller ratio of both lengths counts."""
    ratios, table = [], {}
    for seed in bench.seeds:
        torch.manual_seed(seed)
        lengths = {}
        for name, sides, heads in (("680", SCALES_256, 8), ("2240", SCALES_512, 2)):
            sizes = [side * side for side in sides]
            given = [torch.randn(1, heads, sum(sizes), 64, requires_grad=True) for _ in range(3)]
            mask = torch.zeros(sum(sizes), sum(sizes)).masked_fill(~block_causal_mask(sizes), -torch.inf)
            works = {"diagonal": _diagonal(given, sizes), "dense": _dense(given, mask)}
            times = {kind: median(values) for kind, values in alternate(works, rounds=5, warmup=1).items()}
            lengths[name] = times["dense"] / times["diagonal"]
        bench.say("  " + ", ".join(f"{name} tokens {ratio:.2f}x" for name, ratio in lengths.items()))
        ratios.append(min(lengths.values()))
        table[str(seed)] = lengths
    scale = f"attention of d16's head width, forward and backward, float32, {torch.get_num_threads()} threads"
    detail = "; ".join(f"{name} tokens {median([row[name] for row in table.values()]):.2f}x" for name in ("680", "2240"))
    return Measured(median(ratios), scale, detail, ratios, list(bench.seeds), table)


def _diagonal(given: list[Tensor], sizes: list[int]) -> Callable[[], None]:
    def work() -> None:
        block_diagonal_attention(given[0], given[1], given[2], sizes, 0.125).sum().backward()

    return work


def _dense(given: list[Tensor], mask: Tensor) -> Callable[[], None]:
    def work() -> None:
        F.scaled_dot_product_attention(given[0], given[1], given[2], attn_mask=mask, scale=0.125).sum().backward()

    return work


def sampling_speed(bench: Bench) -> Measured:
    """Random weights, the width and depth of d16, bfloat16; VAR with its cache, HMAR with its default schedule and without."""
    torch.manual_seed(0)
    dtype, labels = torch.bfloat16, torch.tensor([3])
    quantizer = MultiScaleVQ(4096, 32, SCALES_256).eval()
    hmar = MaskedScaleTransformer(1000, 16, 1024, 16).to(dtype).eval()
    var = NextScaleTransformer(1000, 16, 1024, 16).to(dtype).eval()
    settings: dict[str, Any] = {"guidance": 1.5, "top_k": 900, "top_p": 0.96}
    plain = three(SCALES_256)["one step"]
    works: dict[str, Callable[[], Any]] = {
        "VAR": lambda: sample_var(var, quantizer, labels, Draws.seeded(0, 1), **settings),  # type: ignore[arg-type]
        "HMAR": lambda: sample(hmar, quantizer, labels, Draws.seeded(0, 1), **settings),
        "HMAR in one step": lambda: sample(hmar, quantizer, labels, Draws.seeded(0, 1), schedule=plain, **settings),
    }
    for work in works.values():
        work()
    ratios: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(len(bench.seeds)):
        for name in list(works) if number % 2 == 0 else list(works)[::-1]:
            started = time.perf_counter()
            works[name]()
            seconds[name].append(time.perf_counter() - started)
        ratios.append(seconds["VAR"][-1] / seconds["HMAR"][-1])
    words = ", ".join(f"{name} {median(values):.2f} s" for name, values in seconds.items())
    scale = f"one guided 256-pixel token map, d16, random weights, bfloat16, {torch.get_num_threads()} threads"
    return Measured(median(ratios), scale, words, ratios, list(bench.seeds), {"seconds": seconds})


# --- trained ----------------------------------------------------------------------------------------------------------


def _run(bench: Bench, kit: Kit, config: Any) -> Run:
    """The laptop recipe with a shorter budget, without its page; kept in the bench's folder."""
    config = replace(
        config,
        copies=2,
        tokenizer_training=replace(config.tokenizer_training, steps=500),
        generator_training=replace(config.generator_training, steps=400),
        refining=replace(config.refining, steps=150),
    )
    run = Run.open(
        bench.folder / "model", slug="hmar", recipe="check", arguments={}, config=config, command="paperworks check hmar"
    )
    run.execute(Recipe(config, kit.stages[:3]), say=bench.say)
    return run


def markov(bench: Bench, kit: Kit, config: Any) -> Measured:
    run = _run(bench, kit, config)
    config, tokenizer = run.config(type(config)), kit.tokenizer_of(run)
    data = training_tokens(kit, config, run, tokenizer)
    test = open_split(config.data, "test", channels=config.channels)
    held_out = tokenize(tokenizer, framed(test, config.image_size), labels_of(test)).columns
    ratios, table = [], {}
    for seed in bench.seeds:
        losses = {name: _held_out(bench, config, name, seed, data, held_out, tokenizer.quantize) for name in ("Markov", "full")}
        ratios.append(losses["Markov"] / losses["full"])
        table[str(seed)] = losses
        bench.say(f"  seed {seed}: held-out cross-entropy {losses['Markov']:.4f} against {losses['full']:.4f}")
    scale = "MNIST-5k as 30 tokens, 4 layers x 128, 300 steps on each side, plain mean over tokens"
    means = {name: mean(row[name] for row in table.values()) for name in ("Markov", "full")}
    words = f"nats per token: Markov {means['Markov']:.4f}, full context {means['full']:.4f}"
    return Measured(mean(ratios), scale, words, ratios, list(bench.seeds), table)


def _held_out(bench: Bench, config: Any, name: str, seed: int, data: Any, held_out: Any, quantizer: Any) -> float:
    folder = bench.folder / f"{name}-{seed}"
    path = folder / "loss.json"
    if path.is_file():
        return float(json.loads(path.read_text()))
    torch.manual_seed(seed)
    part = config.tokenizer
    shape = (10, 4, 128, 2, part.patch_nums, part.vocab_size, part.z_channels)
    model: Any = MaskedScaleTransformer(*shape, refine_layers=1) if name == "Markov" else NextScaleTransformer(*shape)
    objective = ScaleTraining(model, quantizer, config.label_dropout, "uniform")
    if name == "Markov":
        for parameter in model.mask_parameters():
            parameter.requires_grad_(False)
    budget = replace(config.generator_training, steps=300, seed=seed, ema=None)
    fit(objective, data, budget, folder, label=f"{name}, seed {seed}")
    model.eval()
    with torch.inference_mode():
        tokens = held_out["tokens"]
        logits = model(held_out["label"], quantizer.next_inputs(objective.maps(tokens))).float()
        loss = float(F.cross_entropy(logits.flatten(0, 1), tokens.flatten()))
    write_json(path, loss)
    return loss


def refinement(bench: Bench, kit: Kit, config: Any) -> Measured:
    """Frechet distance of one network's images with the two largest maps refined, over that with every map drawn at once."""
    run = _run(bench, kit, config)
    config, tokenizer, model = run.config(type(config)), kit.tokenizer_of(run), kit.generator_of(run)
    judge = Judge.of(config.data, bench.folder / "judge")
    real = judge.features(framed(open_split(config.data, "test", channels=config.channels), config.image_size, 1000))
    found = three(model.patch_nums)
    plans = {"one step": found["one step"], "refined": [*found["one step"][:-2], *found["more"][-2:]]}
    labels = torch.arange(1000) % model.num_classes

    def make(plan: Schedule, seed: int, some: Tensor, first: int) -> Tensor:
        draws = Draws.seeded(seed, len(some), first)
        made = sample(model, tokenizer.quantize, some, draws, guidance=1.0, top_p=0.96, schedule=plan)
        return tokenizer.decode_features(made.features)

    table: dict[str, list[float]] = {name: [] for name in plans}
    for seed in bench.seeds:
        for name, plan in plans.items():
            images = in_batches(partial(make, plan, seed), labels)
            table[name].append(frechet_distance(real, judge.features(images)))
        bench.say(f"  seed {seed}: " + ", ".join(f"{name} {values[-1]:.2f}" for name, values in table.items()))
    ratios = [refined / plain for refined, plain in zip(table["refined"], table["one step"])]
    words = "; ".join(f"{name}, {sum(map(len, plan))} passes: {mean(table[name]):.2f}" for name, plan in plans.items())
    scale = "the digits' network, 1000 images a seed"
    return Measured(mean(ratios), scale, f"Frechet distance {words}", ratios, list(bench.seeds), table)


def three_schedules(bench: Bench, kit: Kit, config: Any) -> Measured:
    run = _run(bench, kit, config)
    tokenizer, model = kit.tokenizer_of(run), kit.generator_of(run)
    labels, works, passes = torch.arange(10), 0, {}
    for name, schedule in three(model.patch_nums).items():
        made = sample(model, tokenizer.quantize, labels, Draws.seeded(bench.seeds[0], 10), schedule=schedule, top_p=0.96)
        images = tokenizer.decode_features(made.features)
        passes[name] = made.passes
        works += bool(images.isfinite().all()) and float(images.std()) > 0.05 and made.passes == sum(map(len, schedule))
    try:
        sample(model, tokenizer.quantize, labels, Draws.seeded(0, 10), schedule=[[1], [1, 1], [9], [16]])
        refused = False
    except InputError as error:
        refused = "2 x 2" in str(error)
    words = ", ".join(f"{name} {count} passes" for name, count in passes.items())
    return Measured(
        works if refused else 0, "the digits' network", f"{words}; a wrong sum is refused by the map's name", numbers=passes
    )


def _kept_exactly(model: Any, tokenizer: Any, images: Tensor, hole: Tensor) -> bool:
    """Whether the tokens that a partial mask keeps come back unchanged while others are drawn and refined."""
    given, nobody = tokenizer.encode(images), torch.full((len(images),), model.num_classes)
    masks = keep_masks(image_keep_mask(hole[None], model.patch_nums[-1]), model.patch_nums)
    keep = [(mask.flatten(1) > 0).expand(len(images), -1) for mask in masks]
    made = sample(model, tokenizer.quantize, nobody, Draws.seeded(0, len(images)), given=given, keep=keep, guidance=0)
    same = all(torch.equal(new[stays], old[stays]) for new, old, stays in zip(made.indices, given, keep))
    return same and any(not torch.equal(new, old) for new, old in zip(made.indices, given))


def editing(bench: Bench, kit: Kit, config: Any) -> Measured:
    run = _run(bench, kit, config)
    config, tokenizer, model = run.config(type(config)), kit.tokenizer_of(run), kit.generator_of(run)
    images = framed(open_split(config.data, "test", channels=config.channels), config.image_size, 300)
    nobody = torch.full((len(images),), model.num_classes)
    centre = torch.zeros(images.shape[-2:])
    quarter = config.image_size // 4
    centre[quarter:-quarter, quarter:-quarter] = 1
    ratios = []
    for seed in bench.seeds:
        others = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
        worst = 0.0
        for hole in (centre, 1 - centre):
            made = inpaint(model, tokenizer, images, hole, nobody, Draws.seeded(seed, len(images)), guidance=0, top_p=0.96)
            error, random = (float(((one - images).square() * hole).sum()) for one in (made, others))
            worst = max(worst, error / random)
        ratios.append(worst)
    exact = all(_kept_exactly(model, tokenizer, images[:50], hole) for hole in (centre, 1 - centre))
    detail = f"worse of centre and surroundings; tokens outside the hole come back as they were, in every map: {exact}"
    values = ratios if exact else [float("inf")] * len(ratios)
    return Measured(
        median(values), "the digits' network, 300 test images", detail, values, list(bench.seeds), {"kept exact": exact}
    )
