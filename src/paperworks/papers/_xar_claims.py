"""What xAR's claims are measured on: counts, and one step of each kind of entity."""

from __future__ import annotations

import torch
from torch import nn

from paperworks.analysis.counting import count_macs, count_parameters
from paperworks.generators.draws import Draws
from paperworks.generators.next_entity import EntityKind, NextEntityTransformer
from paperworks.generators.next_entity_sampling import sample
from paperworks.objectives.flow_matching import EntityFlow
from paperworks.paper import Measured
from paperworks.papers._dit_cost import DiTCost
from paperworks.training.objective import Context

KINDS: tuple[EntityKind, ...] = ("token", "cell", "subsample", "scale", "image")


def five_entities() -> Measured:
    works = 0
    counts: dict[str, int] = {}
    for kind in KINDS:
        torch.manual_seed(0)
        model = NextEntityTransformer(3, 4, 2, 16, 1, 2, entity=kind, entity_size=2)
        latents = torch.randn(4, 2, 4, 4)
        same = torch.equal(model.entities.merge(model.entities.split(latents), 4, 4), latents)
        batch = {"latents": latents, "label": torch.tensor([0, 1, 2, 0])}
        losses = EntityFlow(model).loss(batch, "main", Context(0, 1, 0))
        losses.total.backward()
        learns = any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
        made = sample(model.eval(), torch.tensor([0, 1]), Draws.seeded(0, 2), steps=3, guidance=2.0)
        counts[kind] = len(model.entities.sizes)
        works += same and learns and bool(made.latents.isfinite().all()) and made.passes == 3 * counts[kind]
    detail = "entities of a 4 x 4 grid: " + ", ".join(f"{kind} {count}" for kind, count in counts.items())
    return Measured(works, "any", detail, numbers=counts, unit="kinds")


def _base() -> NextEntityTransformer:
    return NextEntityTransformer(1000, 16, 16, 768, 8, 12)


def base_size() -> Measured:
    with torch.device("meta"):
        return Measured(count_parameters(_base()) / 1e6, "any", "xAR-B, built and counted")


def larger_models() -> Measured:
    with torch.device("meta"):
        count, ours = count_parameters(DiTCost()) / 1e6, count_parameters(_base()) / 1e6
    return Measured(count, "any", f"{count / ours:.2f} times xAR-B's; SiT-XL is the same network", numbers={"xAR-B": ours})


def operations(steps: int = 40, diffusion_steps: int = 250) -> Measured:
    """Multiply-accumulates of an image: both branches everywhere, but for xAR's first entity; every entity's first pass also
    takes the clean one before it."""
    with torch.device("meta"):
        dit = count_macs(DiTCost(), torch.zeros(1, 256, 16)) * 2 * diffusion_steps
        xar = _base()
        whole = count_macs(_Pass(xar, 256), torch.zeros(1, 256, 16))
    entity = whole / 4
    passes = steps * (1 + 2 * 3) + 2 * 3
    ours = entity * passes
    detail = f"DiT-XL/2 {dit / 1e12:.1f} T in {diffusion_steps} steps, xAR-B {ours / 1e12:.2f} T in 4 x {steps} passes"
    return Measured(dit / ours, "counted, 256 pixels, guided", detail, numbers={"DiT-XL/2": dit, "xAR-B": ours})


class _Pass(nn.Module):
    def __init__(self, model: NextEntityTransformer, length: int):
        super().__init__()
        self.model, self.length = model, length

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.model.z_proj_ln(self.model.z_proj(tokens))
        condition = torch.zeros(1, 4, self.model.dim, device=x.device)
        entity = torch.arange(4, device=x.device).repeat_interleave(self.length // 4)
        for block in (*self.model.encoder_blocks, *self.model.decoder_blocks):
            modulation = tuple(part[:, entity] for part in block.modulation(condition))
            x = block(x, modulation, _attend, self.model.rotary)
        return self.model.pred(self.model.decoder_embed(x))


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    return nn.functional.scaled_dot_product_attention(query, key, value, scale=scale)
