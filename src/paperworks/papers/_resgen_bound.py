"""ResGen's masking as a discrete diffusion, checked by enumeration on a space of 16 images (2 positions x 2 levels x 2 codes).

The state says how many levels of each position are visible. A step shows a given number of hidden tokens, spread over positions
as drawn without replacement; what it shows is drawn from the network's mixture over the masked sum, normalised over the sums
that the hidden codes can have. Then the likelihood of an image is a sum over all chains of states, and its variational bound
the mean of the chains' log likelihoods. Training minimises the same densities before they are normalised, over masks drawn at
random: that mean is enumerated, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise, product
from statistics import mean

import torch
from torch import Tensor

from paperworks.generators.residual_masked import ResidualMaskedTransformer, log_probability_of_counts
from paperworks.generators.residual_masked_sampling import vectors_of
from paperworks.objectives.residual_masking import ResidualMasking
from paperworks.paper import Bench, Measured
from paperworks.papers._generation import TensorSet, adamw
from paperworks.tokenizers.quantizers import ResidualQuantizer
from paperworks.training import TrainConfig, fit
from paperworks.training.objective import Context

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


class Space:
    """All images, their codes and one network that has learned nothing yet. stirred: with weights far from the start, where all
    components look alike."""

    def __init__(self, seed: int, stirred: bool):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = ResidualMaskedTransformer(1, LENGTH, DEPTH, CHANNELS, 16, 1, 2, 4).eval()
            if stirred:
                for parameter in self.model.parameters():
                    parameter.data.add_(0.1 * torch.randn_like(parameter))
            self.quantizer = ResidualQuantizer(DEPTH, CODES, CHANNELS)
            for level in range(DEPTH):
                self.quantizer.book(level).embedding.weight.data.normal_()
            self.law = (2 * torch.randn(CODES ** (LENGTH * DEPTH))).softmax(0)
            """how often each image occurs in the data"""
        self.images = torch.tensor(list(product(range(CODES), repeat=LENGTH * DEPTH))).view(-1, LENGTH, DEPTH)
        self.model.set_scales(vectors_of(self.quantizer, self.images))

    @torch.no_grad()
    def densities(self, image: Tensor, before: Visible) -> list[dict[tuple[int, ...], float]]:
        """Per position, the network's log-density of the masked sum for each choice of the hidden codes, given what is visible;
        empty where nothing is hidden. image int64 [L, D]."""
        visible = torch.tensor([[DEPTH - k for k in before]])
        seen = torch.arange(DEPTH) < visible[0, :, None]
        vectors = vectors_of(self.quantizer, image[None])[0]
        mixture = self.model(torch.tensor([0]), (vectors * seen[..., None]).sum(1)[None], visible)
        found: list[dict[tuple[int, ...], float]] = []
        for position, hidden in enumerate(before):
            options = list(product(range(CODES), repeat=hidden)) if hidden else []
            chosen: dict[tuple[int, ...], float] = {}
            for option in options:
                levels = range(DEPTH - hidden, DEPTH)
                total = torch.stack([self.quantizer.book(level).lookup(torch.tensor(c)) for level, c in zip(levels, option)])
                target = (total.sum(0) / self.model.scales[hidden]).expand(1, LENGTH, -1)
                chosen[option] = -float(mixture.negative_log_likelihood(target)[0, position])
            found.append(chosen)
        return found

    def shown(self, image: Tensor, before: Visible, after: Visible) -> float:
        """Log probability of the tokens that a step shows, given those visible before it: positions are independent, as in the
        sampler, and the densities of a position's choices are normalised over them."""
        log_probability = 0.0
        for position, choices in enumerate(self.densities(image, before)):
            hidden, still = before[position], after[position]
            if hidden == still:
                continue
            truth = tuple(image[position, DEPTH - hidden : DEPTH - still].tolist())
            every = torch.tensor(list(choices.values()), dtype=torch.float64)
            agreeing = [value for option, value in choices.items() if option[: hidden - still] == truth]
            log_probability += float(torch.tensor(agreeing, dtype=torch.float64).logsumexp(0) - every.logsumexp(0))
        return log_probability

    def bound_and_likelihood(self, image: Tensor) -> tuple[float, float]:
        """The variational bound on the negative log-likelihood, and the log-likelihood."""
        bound, paths = 0.0, []
        for probability, path in chains():
            steps = sum(self.shown(image, before, after) for before, after in pairwise(path))
            paths.append(math.log(probability) + steps)
            bound -= probability * steps
        return bound, float(torch.tensor(paths, dtype=torch.float64).logsumexp(0))

    # --- what training computes ---

    def enumerated_loss(self) -> float:
        """Nats a hidden position, mean over images and over all ways to hide tokens: a share of the cosine of U(0, 1), at least
        one token, spread by the law of counts; of each position the density of what is true."""
        nats = positions = 0.0
        for total in range(1, LENGTH * DEPTH + 1):
            share = (math.acos((total - 1) / (LENGTH * DEPTH)) - math.acos(total / (LENGTH * DEPTH))) * 2 / math.pi
            for before in counts(total):
                weight = share * math.exp(float(log_probability_of_counts(torch.tensor(before), DEPTH))) / len(self.images)
                for image in self.images:
                    for position, choices in enumerate(self.densities(image, before)):
                        if choices:
                            nats -= weight * choices[tuple(image[position, DEPTH - before[position] :].tolist())]
                            positions += weight
        return nats / positions

    def data(self, rows: Tensor) -> TensorSet:
        """Images by number, as the generator's training takes them."""
        return TensorSet(tokens=self.images[rows].transpose(1, 2).flatten(1), label=torch.zeros_like(rows))

    @torch.no_grad()
    def drawn_loss(self, draws: int = 12, rows: int = 4000) -> tuple[float, float]:
        """The same by `ResidualMasking.loss` on random masks of all images equally often, and the error of this mean."""
        objective = ResidualMasking(self.model, self.quantizer, label_dropout=0.0)
        batch = self.data(torch.arange(rows) % len(self.images)).columns
        nats = [objective.loss(batch, "main", Context(step, draws, 0)).logs["nats"] for step in range(draws)]
        found = torch.stack(nats).double()
        return float(found.mean()), float(found.std()) / math.sqrt(draws)


def enumerated(bench: Bench) -> Measured:
    """How often something is wrong: mass of the law of counts, nested steps, total probability, bound below likelihood (which
    Jensen's inequality forbids if all that is right), a trained loss that is not the mean of the enumerated terms, training
    that does not lower the bound."""
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
    gaps, totals, losses, bounds = [], [], [], []
    for seed in bench.seeds:
        space = Space(seed, stirred=True)
        expected, (drawn, error) = space.enumerated_loss(), space.drawn_loss()
        losses.append({"enumerated": expected, "drawn": drawn, "error": error})
        wrong += abs(drawn - expected) > 5 * error + 1e-4
        means = []
        for kind in ("stirred", "new", "trained"):
            if kind == "new":
                space = Space(seed, stirred=False)
            elif kind == "trained":
                _train(bench, space, seed)
            found = [space.bound_and_likelihood(image) for image in space.images]
            gaps += [bound + log_likelihood for bound, log_likelihood in found]
            totals.append(sum(math.exp(log_likelihood) for _, log_likelihood in found))
            means.append(float(space.law @ torch.tensor([bound for bound, _ in found])))
        bounds.append(means[1:])
        wrong += means[2] >= means[1]
        bench.say(
            f"  seed {seed}: loss {drawn:.4f} drawn, {expected:.4f} enumerated; bound {means[1]:.3f}, trained {means[2]:.3f}"
        )
    wrong += sum(abs(mass - 1) > 1e-5 for mass in totals) + sum(gap < -1e-6 for gap in gaps)
    detail = (
        f"law of counts sums to {min(masses):.6f}..{max(masses):.6f}, all images to {min(totals):.6f}..{max(totals):.6f}; "
        f"bound minus exact negative log-likelihood {min(gaps):.4f} to {max(gaps):.4f} nats; trained loss within "
        f"{max(abs(row['drawn'] - row['enumerated']) for row in losses):.4f} nats of the enumerated one; bound "
        f"{mean(row[0] for row in bounds):.3f} nats an image before training by it, {mean(row[1] for row in bounds):.3f} after"
    )
    scale = f"all {CODES ** (LENGTH * DEPTH)} images of {LENGTH} positions x {DEPTH} levels x {CODES} codes, random networks"
    numbers = {"smallest gap": min(gaps), "largest gap": max(gaps), "mass": totals, "losses": losses, "bounds": bounds}
    return Measured(wrong, scale, detail, seeds=list(bench.seeds), numbers=numbers, unit="violations")


def _train(bench: Bench, space: Space, seed: int) -> None:
    """By the loss alone, on images as often as the law has them."""
    rows = torch.multinomial(space.law, 2048, replacement=True, generator=torch.Generator().manual_seed(seed))
    budget = TrainConfig(400, 64, optimizers={"main": adamw(3e-3)}, seed=seed, checkpoint_every=10**9)
    learner = ResidualMasking(space.model, space.quantizer, label_dropout=0.0)
    fit(learner, space.data(rows), budget, bench.folder / f"bound-{seed}", label=f"seed {seed}")
    space.model.eval()
