"""What ResGen's claims are measured on: counts, residual tokenizers of several depths, and mixture heads of two sizes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import mean, median
from typing import Any

import torch
from torch import nn

from paperworks.analysis.timing import alternate
from paperworks.generators.draws import Draws
from paperworks.generators.residual_autoregressive import RQTransformer
from paperworks.generators.residual_autoregressive import sample_tokens as sample_one_by_one
from paperworks.generators.residual_masked import ResidualMaskedTransformer, cosine_total, draw_masked_counts, keep_mask
from paperworks.generators.residual_masked_sampling import sample, vectors_of
from paperworks.objectives.residual_masking import ResidualMasking, levels_last
from paperworks.paper import Bench, Measured, Recipe, Run, write_json
from paperworks.papers._code_bench import usage_and_error
from paperworks.papers._generation import TensorSet, framed, labels_of, open_split
from paperworks.papers._token_recipe import Kit, tokenize, training_tokens
from paperworks.tokenizers.quantizers import ResidualQuantizer
from paperworks.training import fit

MIXTURE: dict[str, Any] = {
    "statement": "A mixture models the masked sum better than one Gaussian",
    "unit": "nats a position",
    "kind": "direction",
}


POSITIONS, DEPTHS = 64, (1, 4, 16)


def calls(steps: int = 16) -> Measured:
    """Passes counted by hooks at several depths, of ResGen and of an RQ-Transformer of the same width over the same tokens, and
    the seconds of both, which sample in turns."""
    passes: dict[str, dict[int, int]] = {"ResGen": {}, "RQ-Transformer": {}}
    seconds: dict[str, dict[int, float]] = {"ResGen": {}, "RQ-Transformer": {}}
    labels = torch.tensor([0])
    for depth in DEPTHS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            masked = ResidualMaskedTransformer(2, POSITIONS, depth, 4, 64, 2, 2, 16).eval()
            one_by_one = RQTransformer(2, POSITIONS, depth, 4, 64, 2, 2, level_blocks=1).eval()
            quantizer = ResidualQuantizer(depth, 4, 4).eval()
        works: dict[str, Callable[[], Any]] = {
            "ResGen": partial(_sampled, masked, quantizer, labels, steps),
            "RQ-Transformer": partial(_sampled_one_by_one, one_by_one, labels),
        }
        passes["ResGen"][depth] = _counted([masked.head], works["ResGen"])
        passes["RQ-Transformer"][depth] = _counted(list(one_by_one.level_heads), works["RQ-Transformer"])
        for name, times in alternate(works, rounds=3, warmup=0).items():
            seconds[name][depth] = median(times)
    same = len(set(passes["ResGen"].values())) == 1
    ratio = passes["RQ-Transformer"][16] / passes["ResGen"][16] if same else 0.0
    detail = "; ".join(
        f"depth {depth}: "
        + ", ".join(f"{name} {row[depth]} passes, {1e3 * seconds[name][depth]:.0f} ms" for name, row in passes.items())
        for depth in DEPTHS
    )
    scale = f"{POSITIONS} positions, networks of 2 layers x 64, one image"
    return Measured(ratio, scale, detail, numbers={"passes": passes, "seconds": seconds}, unit="x fewer passes")


def _sampled(model: ResidualMaskedTransformer, quantizer: ResidualQuantizer, labels: torch.Tensor, steps: int) -> Any:
    return sample(model, quantizer, labels, Draws.seeded(0, 1), steps=steps)


def _sampled_one_by_one(model: RQTransformer, labels: torch.Tensor) -> Any:
    return sample_one_by_one(model, labels, Draws.seeded(0, 1))


def _counted(parts: Sequence[nn.Module], work: Callable[[], Any]) -> int:
    """How often `work` runs any of the modules."""
    count = [0]
    hooks = [part.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1)) for part in parts]
    work()
    for hook in hooks:
        hook.remove()
    return count[0]


class _Levels(nn.Module):
    """A residual quantiser in the shape that the bench for code books expects."""

    def __init__(self, depth: int):
        super().__init__()
        self.inner = ResidualQuantizer(depth, 64, 8)
        self.vocab_size = 64

    def seed_codes(self, features: torch.Tensor, generator: torch.Generator) -> None:
        self.inner.seed_codes(features, generator)

    def forward(self, features: torch.Tensor) -> Any:
        return self.inner(features)

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.inner.encode(features), 1)

    def lookup(self, indices: torch.Tensor) -> torch.Tensor:
        return self.inner.lookup(list(indices.split(1, 1)))


def depth_helps(bench: Bench) -> Measured:
    """Largest ratio of an error to that of half the depth; the fidelity half of the claim."""
    depths, ratios, table = (1, 2, 4, 8), [], {}
    for seed in bench.seeds:
        errors = [usage_and_error(bench, f"depth-{d}", seed, partial(_Levels, d), 8, steps=400)["error"] for d in depths]
        ratios.append(max(after / before for before, after in pairwise(errors)))
        table[str(seed)] = dict(zip(map(str, depths), errors))
    words = ", ".join(f"depth {d}: {mean(row[str(d)] for row in table.values()):.5f}" for d in depths)
    scale = "8 x 8 patches of the embedded photos, the same MLP autoencoder, 64 codes a level, 400 steps"
    return Measured(mean(ratios), scale, f"squared error {words}", ratios, list(bench.seeds), table, "x error per doubling")


def mixture_gap(bench: Bench, kit: Kit, config: Any) -> Measured:
    """The same network with 64 components and with one, on the same tokens; held-out likelihood of the same masks."""
    config = replace(config, copies=2, tokenizer_training=replace(config.tokenizer_training, steps=400))
    tokenizer, data = trained_tokenizer(bench, kit, config, "model")
    test = open_split(config.data, "test", channels=config.channels)
    held_out = tokenize(tokenizer, framed(test, config.image_size), labels_of(test)).columns
    gaps, table = [], {}
    for seed in bench.seeds:
        nats = {count: _held_out(bench, config, count, seed, data, held_out, tokenizer) for count in (64, 1)}
        gaps.append(nats[1] - nats[64])
        table[str(seed)] = nats
        bench.say(f"  seed {seed}: {nats[64]:.3f} nats a position with 64 components, {nats[1]:.3f} with one")
    words = f"64 components {mean(r[64] for r in table.values()):.2f} nats, one {mean(r[1] for r in table.values()):.2f}"
    scale = "digits as 16 positions x 4 levels of 64 codes; 4 layers x 128, 300 steps on each side"
    return Measured(mean(gaps), scale, words, gaps, list(bench.seeds), table)


def trained_tokenizer(bench: Bench, kit: Kit, config: Any, name: str) -> tuple[Any, TensorSet]:
    """The configuration's tokenizer and the training images' tokens, kept in the bench's folder `name`."""
    folder, command = bench.folder / name, "paperworks check resgen"
    run = Run.open(folder, slug="resgen", recipe="check", arguments={}, config=config, command=command)
    run.execute(Recipe(config, kit.stages[:1]), say=bench.say)
    tokenizer = kit.tokenizer_of(run)
    return tokenizer, training_tokens(kit, config, run, tokenizer)


def _held_out(bench: Bench, config: Any, mixtures: int, seed: int, data: Any, held_out: Any, tokenizer: Any) -> float:
    folder = bench.folder / f"mixtures{mixtures}-{seed}"
    path = folder / "nats.json"
    if path.is_file():
        return float(json.loads(path.read_text()))
    torch.manual_seed(seed)
    depth, channels = config.tokenizer.depth, config.tokenizer.embed_dim
    model = ResidualMaskedTransformer(10, 16, depth, channels, 128, 4, 2, mixtures)
    model.set_scales(vectors_of(tokenizer.quantize, levels_last(data.columns["tokens"][:5000], depth)))
    budget = replace(config.generator_training, steps=300, seed=seed, ema=None)
    fit(ResidualMasking(model, tokenizer.quantize), data, budget, folder, label=f"{mixtures} components, seed {seed}")
    generator = torch.Generator().manual_seed(1)
    vectors = vectors_of(tokenizer.quantize, levels_last(held_out["tokens"], depth))
    progress = torch.rand(len(vectors), generator=generator)
    total = cosine_total(progress, 16 * depth).clamp(min=1)
    masked = draw_masked_counts(len(vectors), 16, depth, total, generator)
    keep = keep_mask(masked, depth)[..., None]
    model.eval()
    with torch.inference_mode():
        found = model(held_out["label"], (vectors * keep).sum(2), depth - masked)
        target = (vectors * ~keep).sum(2) / model.scales[masked][..., None]
        nats = float(found.negative_log_likelihood(target)[masked > 0].mean())
    write_json(path, nats)
    return nats
