"""VAR's transformer (2404.02905, section 3.2): one pass predicts all tokens of a scale from all smaller scales.

The input at scale k is not the tokens of scale k-1 but the image decoded so far, area-downsampled to the size of scale k
(the tokenizer's `next_inputs`); the class vector is both the start token and the adaLN condition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.layers.adaln_transformer import AdaLNBlock, AdaLNHeadNorm, cached, init_adaln_transformer
from paperworks.layers.block_causal import block_causal_attention, block_causal_mask, block_ends, block_numbers
from paperworks.layers.kv_cache import KVCache
from paperworks.layers.pretrained import Pretrained, load_official

SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
SCALES_1024 = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)


class SharedAdaLN(nn.Linear):
    """The condition projection that all blocks share in the largest model: [B, C] -> [B, 1, 6, C]."""

    def forward(self, condition: Tensor) -> Tensor:
        return super().forward(condition).view(-1, 1, 6, self.in_features)


class NextScaleTransformer(nn.Module, Pretrained):
    """Predicts the token maps of a multi-scale tokenizer, scale after scale.

    Args are those of the released code; `vocab_size` and `code_channels` must be the tokenizer's.
    Labels are 0..num_classes-1; `num_classes` itself is the null label (no class).
    """

    mask: Tensor
    levels: Tensor

    def __init__(
        self,
        num_classes: int = 1000,
        depth: int = 16,
        embed_dim: int = 1024,
        num_heads: int = 16,
        patch_nums: Sequence[int] = SCALES_256,
        vocab_size: int = 4096,
        code_channels: int = 32,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        shared_aln: bool = False,
        attn_l2_norm: bool = True,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise InputError(f"embed_dim={embed_dim} does not divide into num_heads={num_heads}")
        if list(patch_nums) != sorted(set(patch_nums)) or min(patch_nums) < 1:
            raise InputError(f"patch_nums={tuple(patch_nums)} must be growing sides of token maps, such as (1, 2, 3, 4)")
        self.num_classes, self.vocab_size, self.code_channels = num_classes, vocab_size, code_channels
        self.depth, self.dim, self.heads = depth, embed_dim, num_heads
        self.patch_nums = tuple(patch_nums)
        self.sizes = [side * side for side in self.patch_nums]
        self.ends = block_ends(self.sizes)
        self.length = sum(self.sizes)

        self.word_embed = nn.Linear(code_channels, embed_dim)
        self.class_emb = nn.Embedding(num_classes + 1, embed_dim)
        self.pos_start = nn.Parameter(torch.empty(1, self.sizes[0], embed_dim))
        self.pos_1LC = nn.Parameter(torch.empty(1, self.length, embed_dim))
        self.lvl_embed = nn.Embedding(len(self.patch_nums), embed_dim)
        self.shared_ada_lin = nn.Sequential(nn.SiLU(), SharedAdaLN(embed_dim, 6 * embed_dim)) if shared_aln else nn.Identity()
        rates = [drop_path_rate * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            AdaLNBlock(embed_dim, num_heads, mlp_ratio, drop_path=r, l2_norm=attn_l2_norm, shared=shared_aln, eps=norm_eps)
            for r in rates
        )
        self.head_nm = AdaLNHeadNorm(embed_dim, norm_eps)
        self.head = nn.Linear(embed_dim, vocab_size)

        self.register_buffer("levels", torch.tensor(block_numbers(self.sizes)), persistent=False)
        self.register_buffer("mask", block_causal_mask(self.sizes), persistent=False)
        std = (1 / embed_dim / 3) ** 0.5
        nn.init.trunc_normal_(self.pos_start, std=std)
        nn.init.trunc_normal_(self.pos_1LC, std=std)
        init_adaln_transformer(self, self.blocks, self.head, self.head_nm, std=std)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **official_kwargs: Any) -> NextScaleTransformer:
        """From a released `var_d*.pth`. `official_kwargs` are the released constructor's; those that only chose a kernel or
        a training detail are ignored, and vocabulary and channels are read off the weights."""
        names = ("num_classes", "depth", "embed_dim", "num_heads", "patch_nums", "mlp_ratio", "shared_aln", "attn_l2_norm")
        kwargs = {name: official_kwargs[name] for name in names if name in official_kwargs}
        try:
            kwargs |= {"vocab_size": len(state_dict["head.weight"]), "code_channels": state_dict["word_embed.weight"].shape[1]}
        except KeyError as missing:
            raise InputError(f"not a VAR transformer checkpoint: it has no {missing}") from None
        model = cls(**kwargs, norm_eps=official_kwargs.get("norm_eps", 1e-6))
        # masks are derived, and the tokenizer is a model of its own
        load_official(model, state_dict, ignore=("attn_bias_for_masking", "lvl_1L", "vae.", "vae_proxy", "vae_quant_proxy"))
        return model

    def forward(self, labels: Tensor, inputs: Tensor) -> Tensor:
        """Teacher forcing: labels int64 [B], inputs [B, L - first, code_channels] from `next_inputs` -> logits [B, L, V].

        `inputs` may stop after any whole scale; the logits then cover the scales up to that one (progressive training).
        """
        self.check_labels(labels)
        first, length = self.sizes[0], self.sizes[0] + inputs.shape[1]
        if length not in [end for _, end in self.ends]:
            raise InputError(f"inputs hold {inputs.shape[1]} positions, which ends within a scale of {self.patch_nums}")
        condition = self.class_emb(labels)
        x = torch.cat((self.start(condition), self.word_embed(inputs) + self.positions()[:, first:length]), dim=1)
        shared = self.shared_ada_lin(condition)
        for block in self.blocks:
            assert isinstance(block, AdaLNBlock)
            x = block(x, block.modulation(shared), self._attend)
        return self.head(self.head_nm(x, condition))

    def positions(self) -> Tensor:
        """Position plus level embedding, [1, L, C]."""
        return self.pos_1LC + self.lvl_embed(self.levels)

    def start(self, condition: Tensor) -> Tensor:
        """Input of the first scale, [B, first, C]."""
        return condition[:, None] + self.pos_start + self.positions()[:, : self.sizes[0]]

    def check_labels(self, labels: Tensor) -> None:
        if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) <= self.num_classes):
            raise InputError(f"labels must lie in 0..{self.num_classes - 1}, or be {self.num_classes} for no class")

    def decoding(self, labels: Tensor) -> ScaleDecoder:
        """A decoder for these rows, one scale after the other with cached keys and values."""
        return ScaleDecoder(self, labels)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        length = query.shape[2]
        sizes = [size for size, (_, end) in zip(self.sizes, self.ends) if end <= length]
        return block_causal_attention(query, key, value, sizes, scale, self.mask[:length, :length])


class ScaleDecoder:
    """Runs the new tokens of each scale against cached keys and values. Everything that depends on the condition alone
    (class vectors, adaLN of every block) is computed once here instead of once per scale."""

    def __init__(self, model: NextScaleTransformer, labels: Tensor):
        model.check_labels(labels)
        self.model = model
        self.condition = model.class_emb(labels)
        shared = model.shared_ada_lin(self.condition)
        self.blocks = [block for block in model.blocks if isinstance(block, AdaLNBlock)]
        self.modulations = [block.modulation(shared) for block in self.blocks]
        self.positions = model.positions()
        weight = model.head.weight
        self.cache = KVCache(
            model.depth,
            len(labels),
            model.heads,
            model.length,
            model.dim // model.heads,
            device=weight.device,
            dtype=weight.dtype,
        )
        self.scale = 0

    def step(self, inputs: Tensor | None) -> Tensor:
        """Logits [rows, n, V] of the next scale; `inputs` [rows, n, code_channels] (None for the first scale)."""
        model = self.model
        begin, end = model.ends[self.scale]
        if inputs is None:
            x = model.start(self.condition)
        else:
            x = model.word_embed(inputs.to(self.condition.dtype)) + self.positions[:, begin:end]
        for layer, (block, modulation) in enumerate(zip(self.blocks, self.modulations)):
            x = block(x, modulation, cached(self.cache, layer))
        self.cache.commit(end - begin)
        self.scale += 1
        return F.linear(model.head_nm(x, self.condition), model.head.weight, model.head.bias).float()
