"""VQGAN-LC's quantiser (2406.11837): a large frozen table of features, all of whose rows pass through one trained projector, so
that every code moves with the encoder's outputs and none dies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.vector_quantization import nearest_code
from paperworks.tokenizers.quantizers import CodeBook, Quantized, check_indices

TREE_CHANNELS = 16
"""up to so many dimensions a search tree beats the product with all codes"""


class ProjectedQuantizer(CodeBook):
    """Features [B, ..., C]; codes = projector(table [V, D]), D given by the table.

    projector: "linear" (with bias, weights N(0, C^-1/2)) or "mlp" (D -> hidden -> C with ReLU). beta: weight of |sg(q) - z|^2,
    codebook_weight: of |q - sg(z)|^2, the projector's only gradient. start "data": `seed_codes` gives the projected codes the
    mean and covariance of the first batch's features; "paper": leaves them as initialised, far larger than what a young encoder
    puts out, so that only few codes are used for long.
    In evaluation the projected codes and a search tree over them are kept until training starts again.
    """

    projected: Tensor | None

    def __init__(
        self,
        table: Tensor | tuple[int, int],
        channels: int,
        *,
        projector: Literal["linear", "mlp"] = "linear",
        hidden: int = 256,
        beta: float = 1.0,
        codebook_weight: float = 0.33,
        start: Literal["data", "paper"] = "data",
    ):
        values = torch.zeros(table) if isinstance(table, tuple) else table
        if values is table or values.ndim != 2:
            check_table(values)
        super().__init__(len(values), channels)
        self.beta, self.codebook_weight, self.start = beta, codebook_weight, start
        width = values.shape[1]
        self.tok_embeddings = nn.Embedding(len(values), width)
        self.tok_embeddings.weight.data.copy_(values)
        self.tok_embeddings.weight.requires_grad_(False)
        if projector == "linear":
            self.codebook_projection: nn.Module = nn.Linear(width, channels)
            nn.init.normal_(self.codebook_projection.weight, std=channels**-0.5)
        else:
            self.codebook_projection = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.projected = None
        self._tree = None

    @torch.no_grad()
    def set_table(self, table: Tensor) -> None:
        """Fill the frozen table, for instance with `class_wise_centres` of any network's features."""
        weight = self.tok_embeddings.weight
        if table.shape != weight.shape:
            raise InputError(
                f"a code book of {list(table.shape)} does not fit {list(weight.shape)}: change vocab_size or table_width"
            )
        check_table(table)
        weight.copy_(table)
        self._forget()

    def codes(self) -> Tensor:
        """The projected codes [V, C]; in evaluation computed once."""
        if self.training or torch.is_grad_enabled():
            return self.codebook_projection(self.tok_embeddings.weight)
        if self.projected is None:
            self.projected = self.codebook_projection(self.tok_embeddings.weight).float()
        return self.projected

    def forward(self, features: Tensor) -> Quantized:
        raw = features.float()
        with torch.autocast(raw.device.type, enabled=False):
            codes = self.codebook_projection.float()(self.tok_embeddings.weight)
        vectors = raw.detach().flatten(0, -2)
        indices = nearest_code(vectors, codes.detach()).view(raw.shape[:-1])
        quantised = F.embedding(indices, codes)
        loss = self.beta * F.mse_loss(quantised.detach(), raw)
        loss = loss + self.codebook_weight * F.mse_loss(quantised, raw.detach())
        passed = raw + (quantised - raw).detach()
        return Quantized(passed, loss, [indices.flatten(1)], [vectors])

    @torch.no_grad()
    def encode(self, features: Tensor) -> Tensor:
        """int64 [B, ...] of features [B, ..., C]."""
        vectors = features.float().flatten(0, -2)
        if self.training or self.channels > TREE_CHANNELS or vectors.device.type != "cpu":
            found = nearest_code(vectors, self.codes())
        else:
            found = torch.from_numpy(self._search_tree().query(vectors.numpy(), workers=torch.get_num_threads())[1])
        return found.view(features.shape[:-1])

    def lookup(self, indices: Tensor) -> Tensor:
        """Code vectors [..., C]."""
        check_indices(indices, self.vocab_size)
        return F.embedding(indices, self.codes())

    def soft_lookup(self, weights: Tensor) -> Tensor:
        """Mixtures of codes [..., C] for weights [..., V]."""
        return weights.float() @ self.codes()

    def table(self, level: int) -> Tensor | None:
        return None  # no code is trained by itself

    @torch.no_grad()
    def seed_codes(self, features: Tensor, generator: torch.Generator) -> None:
        """Whiten the projected codes and colour them like the features: their mean and covariance then agree."""
        if self.start != "data":
            return
        last = [module for module in self.codebook_projection.modules() if isinstance(module, nn.Linear)][-1]
        codes = self.codebook_projection(self.tok_embeddings.weight).double()
        wanted = features.double().flatten(0, -2)
        transform = _root(torch.cov(codes.T), inverse=True) @ _root(torch.cov(wanted.T))  # applied to row vectors
        offset = wanted.mean(0) - codes.mean(0) @ transform
        last.weight.copy_((last.weight.double().T @ transform).T)
        last.bias.copy_(last.bias.double() @ transform + offset)
        self._forget()

    def train(self, mode: bool = True) -> ProjectedQuantizer:
        if mode:
            self._forget()
        return super().train(mode)

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self._forget()
        super()._load_from_state_dict(*args, **kwargs)

    def _forget(self) -> None:
        self.projected, self._tree = None, None

    def _search_tree(self):  # type: ignore[no-untyped-def]
        from scipy.spatial import cKDTree

        if self._tree is None:
            with torch.no_grad():
                self._tree = cKDTree(self.codes().numpy())
        return self._tree


def check_table(values: Tensor) -> None:
    """Raises InputError unless `values` is a table of finite numbers [V, D]."""
    if values.ndim != 2 or not values.is_floating_point() or not bool(values.isfinite().all()):
        what = f"{values.dtype} {list(values.shape)}"
        raise InputError(f"a code book is a table of finite numbers [codes, features], not {what}")


def _root(covariance: Tensor, inverse: bool = False) -> Tensor:
    """Symmetric (inverse) square root; directions without spread count as a millionth of the largest one."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=float(values.max()) * 1e-6 + 1e-12)
    return (vectors * values.pow(-0.5 if inverse else 0.5)) @ vectors.T


def class_wise_centres(features: Sequence[Tensor], per_class: int, generator_seed: int = 0) -> Tensor:
    """A code book [classes x per_class, D]: the centres of k-means within each class's features [N, D] (section 3.2).

    Classes with fewer than `per_class` vectors give all of theirs.
    """
    from sklearn.cluster import MiniBatchKMeans

    parts = []
    for number, vectors in enumerate(features):
        if not bool(vectors.isfinite().all()):
            raise InputError(f"features of class {number} hold numbers that are not finite")
        if len(vectors) <= per_class:
            parts.append(vectors.float())
            continue
        means = MiniBatchKMeans(per_class, n_init=1, random_state=generator_seed + number, batch_size=4096)
        parts.append(torch.from_numpy(means.fit(vectors.float().numpy()).cluster_centers_).float())
    return torch.cat(parts)
