"""ResGen's masking as a discrete diffusion, checked by enumeration on a space of 16 images (2 positions x 2 levels x 2 codes).

The state says how many levels of each position are visible. A step shows a given number of hidden tokens, spread over positions
as drawn without replacement; what it shows is drawn from the network's mixture over the masked sum, normalised over the sums
that the hidden codes can have. Then the likelihood of an image is a sum over all chains of states, and its variational bound
the mean of the chains' log likelihoods.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise, product

import torch
from torch import Tensor

from paperworks.generators.residual_masked import ResidualMaskedTransformer, log_probability_of_counts
from paperworks.paper import Bench, Measured

LENGTH, DEPTH, CODES, CHANNELS = 2, 2, 2, 3
TOTALS = (4, 2, 1, 0)
"""hidden tokens before, between and after the steps"""

Visible = tuple[int, ...]


def counts(total: int) -> list[Visible]:
    """All ways of hiding `total` tokens: hidden levels of each position."""
    return [k for k in product(range(DEPTH + 1), repeat=LENGTH) if sum(k) == total]


def step_probability(before: Visible, after: Visible) -> float:
    """Of hidden counts `after`, when sum(before) - sum(after) of the hidden tokens are shown without replacement."""
    if any(b < a for b, a in zip(before, after)):
        return 0.0
    ways = math.prod(math.comb(b, b - a) for b, a in zip(before, after))
    return ways / math.comb(sum(before), sum(before) - sum(after))


def chains() -> Iterator[tuple[float, list[Visible]]]:
    """Every sequence of hidden counts through TOTALS, with its probability."""

    def grow(path: list[Visible], probability: float) -> Iterator[tuple[float, list[Visible]]]:
        if len(path) == len(TOTALS):
            yield probability, path
            return
        for after in counts(TOTALS[len(path)]):
            chance = step_probability(path[-1], after)
            if chance:
                yield from grow([*path, after], probability * chance)

    yield from grow([(DEPTH,) * LENGTH], 1.0)


@torch.no_grad()
def shown_log_probability(
    model: ResidualMaskedTransformer, codes: Tensor, image: Tensor, before: Visible, after: Visible
) -> float:
    """Of the tokens that a step shows, given those visible before it: positions are independent, as in the sampler.

    codes [D, V, C]; image int64 [L, D]."""
    visible = torch.tensor([[DEPTH - k for k in before]])
    seen = torch.arange(DEPTH) < visible[0, :, None]
    vectors = torch.stack([codes[level][image[:, level]] for level in range(DEPTH)], 1)
    mixture = model(torch.tensor([0]), (vectors * seen[..., None]).sum(1)[None], visible)
    log_probability = 0.0
    for position, (hidden, still) in enumerate(zip(before, after)):
        if hidden == still:
            continue
        options = list(product(range(CODES), repeat=hidden))
        levels = range(DEPTH - hidden, DEPTH)
        sums = torch.stack(
            [sum((codes[level][c] for level, c in zip(levels, option)), torch.zeros(CHANNELS)) for option in options]
        )
        density = -mixture.negative_log_likelihood((sums / model.scales[hidden])[:, None].expand(-1, LENGTH, -1))[:, position]
        truth = image[position, DEPTH - hidden : DEPTH - still].tolist()
        agrees = torch.tensor([list(option[: hidden - still]) == truth for option in options])
        log_probability += float(density.log_softmax(0)[agrees].logsumexp(0))
    return log_probability


def enumerated(bench: Bench) -> Measured:
    """How often something is wrong: mass of the law of counts, nested steps, total probability, bound below likelihood."""
    wrong = 0
    masses = []
    for total in range(LENGTH * DEPTH + 1):
        rows = torch.tensor(counts(total))
        masses.append(float(log_probability_of_counts(rows, DEPTH).double().exp().sum()))
        wrong += abs(masses[-1] - 1) > 1e-6
    reached: dict[Visible, float] = {}
    for probability, path in chains():
        reached[path[1]] = reached.get(path[1], 0.0) + probability
    for state, probability in reached.items():  # a step from everything hidden follows the law that training draws from
        law = float(log_probability_of_counts(torch.tensor([state]), DEPTH).double().exp())
        wrong += abs(law - probability) > 1e-6
    gaps, totals = [], []
    for seed in bench.seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = ResidualMaskedTransformer(1, LENGTH, DEPTH, CHANNELS, 16, 1, 2, 4).eval()
            for parameter in model.parameters():  # far from the start, where all components look alike
                parameter.data.add_(0.1 * torch.randn_like(parameter))
            codes = torch.randn(DEPTH, CODES, CHANNELS)
        mass = 0.0
        for flat in product(range(CODES), repeat=LENGTH * DEPTH):
            image = torch.tensor(flat).view(LENGTH, DEPTH)
            bound, paths = 0.0, []
            for probability, path in chains():
                steps = [shown_log_probability(model, codes, image, a, b) for a, b in pairwise(path)]
                paths.append(math.log(probability) + sum(steps))
                bound -= probability * sum(steps)
            log_likelihood = float(torch.tensor(paths, dtype=torch.float64).logsumexp(0))
            gaps.append(bound + log_likelihood)
            mass += math.exp(log_likelihood)
        totals.append(mass)
        wrong += abs(mass - 1) > 1e-5
    wrong += sum(gap < -1e-6 for gap in gaps)
    detail = (
        f"law of counts sums to {min(masses):.6f}..{max(masses):.6f}, all images to {min(totals):.6f}..{max(totals):.6f}; "
        f"bound minus exact negative log-likelihood {min(gaps):.4f} to {max(gaps):.4f} nats"
    )
    scale = f"all {CODES ** (LENGTH * DEPTH)} images of {LENGTH} positions x {DEPTH} levels x {CODES} codes, random networks"
    numbers = {"smallest gap": min(gaps), "largest gap": max(gaps), "mass": totals}
    return Measured(wrong, scale, detail, seeds=list(bench.seeds), numbers=numbers, unit="violations")
