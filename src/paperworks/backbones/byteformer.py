"""ByteFormer (2306.00238): a transformer that classifies files by their bytes, whatever the bytes mean.

Bytes (0 to 255, -1 behind the end of a file) are embedded, a strided convolution makes tokens of them, and blocks with
attention in shifted windows alternate with merging of neighbouring tokens (section 3). No part knows of images or sound.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from paperworks.errors import InputError
from paperworks.layers.adaln_transformer import Attend
from paperworks.layers.mlp import make_classifier
from paperworks.layers.pretrained import Pretrained, load_official
from paperworks.layers.transformer import ActivationKind, Block

PADDING = -1
"""what stands behind the end of a file in a batch of files"""
SYMBOLS = 257
"""the bytes and, last, padding"""

VARIANTS: dict[str, dict[str, Any]] = {
    "byteformer_tiny_k32": {"kernel": 32, "max_tokens": 9409},
    "byteformer_tiny_k8": {"kernel": 8, "max_tokens": 12140},
    "byteformer_tiny_k4": {"kernel": 4, "max_tokens": 4199},
    "byteformer_small_k32": {"width": 384, "heads": 6, "kernel": 32, "max_tokens": 9409},
    "byteformer_base_k32": {"width": 768, "heads": 12, "kernel": 32, "max_tokens": 9409},
    "byteformer_huge_k32": {"width": 1280, "heads": 20, "depth": 32, "kernel": 32, "max_tokens": 9409},
}
"""k32 for TIFF, PNG and bare pixels of 224 x 224, k8 for JPEG of quality 100, k4 for JPEG of quality 60 (table 1)"""

Mask = Literal["correct", "official"]


class ByteStem(nn.Module):
    """Bytes [N, L] -> tokens [N, 1 + (L - kernel) // (kernel / 2), width]: embedding, then a convolution without padding.

    Both are linear in the byte that stands at each of the kernel's places, so what a byte adds to a token is looked up in a
    table [place, byte, width] of their products, and a token is the sum of `kernel` rows. That needs a hundredth of the
    convolution's arithmetic and no embedded sequence; gradients flow through the table to both weights.
    """

    def __init__(self, width: int, kernel: int):
        super().__init__()
        if kernel < 2 or kernel % 2:
            raise InputError(f"kernel {kernel}: it moves by half of itself, so take an even one such as 4, 8 or 32")
        self.kernel, self.stride = kernel, kernel // 2
        self.embedding = nn.Embedding(SYMBOLS, width, padding_idx=SYMBOLS - 1)
        self.conv = nn.Conv1d(width, width, kernel, kernel // 2, bias=False)
        nn.init.trunc_normal_(self.embedding.weight, std=width**-0.5)
        nn.init.zeros_(self.embedding.weight[-1].detach())
        nn.init.normal_(self.conv.weight, std=(width * kernel) ** -0.5)  # tokens are as large as positions
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None

    def table(self) -> Tensor:
        """[kernel x 257, width]: row 257 place + byte. Without gradients it is kept until a weight changes."""
        embedding, conv = self.embedding.weight, self.conv.weight
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or embedding.device.type == "meta":
            return self._product()
        if self._kept is None or not (_same(self._kept[0], embedding) and _same(self._kept[1], conv)):
            self._kept = (embedding.detach().clone(), conv.detach().clone(), self._product())
        return self._kept[2]

    def _product(self) -> Tensor:
        embedding = self.embedding.weight
        if embedding.requires_grad:  # the symbol for padding does not learn
            embedding = torch.cat((embedding[:-1], embedding[-1:].detach()))
        width = embedding.shape[1]
        kind = embedding.device.type
        with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):  # tokens of rounded rows would be rough
            rows = embedding @ self.conv.weight.permute(1, 2, 0).reshape(width, -1)
        return rows.view(SYMBOLS, self.kernel, width).transpose(0, 1).reshape(-1, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: integers -1 to 255."""
        symbols = x.int()
        symbols = torch.where(symbols < 0, SYMBOLS - 1, symbols)
        places = torch.arange(self.kernel, dtype=torch.int32, device=x.device) * SYMBOLS
        rows = symbols.unfold(1, self.kernel, self.stride) + places
        return F.embedding_bag(rows.flatten(0, 1), self.table(), mode="sum").unflatten(0, rows.shape[:2])

    def train(self, mode: bool = True) -> Self:
        self._kept = None
        return super().train(mode)


def _same(kept: Tensor, weight: Tensor) -> bool:
    return kept.device == weight.device and kept.dtype == weight.dtype and torch.equal(kept, weight)


class TokenMerging(nn.Module):
    """[N, L, C] -> [N, ceil(L / 2), C]: neighbouring tokens side by side, linear, layer norm. A zero token fills up."""

    def __init__(self, width: int):
        super().__init__()
        self.reduction = nn.Linear(2 * width, width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % 2:
            x = F.pad(x, (0, 0, 0, 1))
        return self.norm(self.reduction(x.reshape(x.shape[0], x.shape[1] // 2, -1)))


def separate_windows(window: int, shift: int = 0, real: Tensor | None = None) -> Attend:
    """Attention within stretches of `window` tokens that begin at `shift`; what is left before and behind are stretches too.

    That is what padding to whole windows, rolling by -shift and masking what was rolled in or padded comes to (2103.14030
    along one axis): nobody sees across a border, so neither padding, rolling nor a mask is needed.
    real: bool [N, L], False for tokens that nobody but themselves looks at.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        length = query.shape[2]
        first = min(shift, length)
        last = first + (length - first) // window * window
        pieces = []
        for start, stop, size in ((0, first, first), (first, last, window), (last, length, length - last)):
            if start < stop:
                mask = None if real is None else _visible(real[:, start:stop], size)
                pieces.append(_within(size, scale, mask, *(each[:, :, start:stop] for each in (query, key, value))))
        return _joined(pieces)

    return attend


def rolled_windows(window: int, shift: int, blank: Tensor) -> Attend:
    """What the released networks were trained with: the sequence is filled up with zero tokens to whole windows and rolled by
    -shift, and nothing is masked, so the zero tokens are seen and the last window joins the end to the beginning.

    blank: query, key and value of a zero token [3, H, d].
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        length = query.shape[2]
        last = shift + max(0, length - shift) // window * window  # windows up to here hold tokens of the sequence only
        filled = -(-length // window) * window
        end, begin = max(0, length - last), min(shift, length)
        pieces = []
        if last > shift:
            pieces.append(_within(window, scale, None, *(each[:, :, shift:last] for each in (query, key, value))))
        if end or begin:
            rest = []
            for each, zero in zip((query, key, value), blank.to(query.dtype)):
                zeros = zero[:, None].expand(len(each), -1, filled, -1)
                gap, behind = zeros[:, :, : filled - max(length, last)], zeros[:, :, : shift - begin]
                rest.append(torch.cat((each[:, :, length - end :], gap, each[:, :, :begin], behind), 2))
            mixed = _within(window, scale, None, *rest)
            at = filled - max(length, last) + end
            pieces = [mixed[:, at : at + begin], *pieces, mixed[:, :end]]
        return _joined(pieces)

    return attend


def _within(size: int, scale: float, mask: Tensor | None, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention within every `size` tokens: [N, H, L, d] -> [N, L, H, d]. Nothing is copied beforehand where N is 1."""
    # [N x L / size, H, size, d]
    q, k, v = (each.unflatten(2, (-1, size)).transpose(1, 2).flatten(0, 1) for each in (query, key, value))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return mixed.transpose(1, 2).reshape(query.shape[0], query.shape[2], query.shape[1], query.shape[3])


def _joined(pieces: list[Tensor]) -> Tensor:
    """Pieces [N, L, H, d] one after the other as [N, H, L, d]."""
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)).transpose(1, 2)


def _visible(real: Tensor, size: int) -> Tensor:
    """bool [N x L / size, 1, size, size]: real tokens, and everyone itself, so that no row is empty."""
    columns = real.reshape(-1, 1, 1, size)
    return columns | torch.eye(size, dtype=torch.bool, device=real.device)


class ByteFormer(nn.Module, Pretrained):
    """Files [N, L] as integers -> logits [N, num_classes]. Bytes are 0 to 255; -1 fills up what is shorter than the longest.

    kernel: bytes of a token, which begins kernel / 2 behind the one before. max_tokens: learned positions.
    window: tokens that see one another, for all blocks or a list. shifts: per block; every second one by half a window.
    merge: per block, whether neighbouring tokens are merged behind it; by default behind blocks 1, 2, 4, 6, 8 and 10.
    mask: "correct" hides tokens that reach beyond their file, so that logits do not depend on the other files of a batch, and
      lets nobody look across the ends of the sequence. The authors' code makes these masks and does not use them; "official"
      is for weights trained so: padding takes part like bytes (see `rolled_windows`).
    """

    def __init__(
        self,
        num_classes: int = 1000,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        hidden: int | None = None,
        kernel: int = 32,
        max_tokens: int = 50_000,
        window: int | Sequence[int] = 128,
        shifts: Sequence[int] | None = None,
        merge: Sequence[bool] | None = None,
        activation: ActivationKind = "gelu",
        mask: Mask = "correct",
    ):
        super().__init__()
        if mask not in ("correct", "official"):
            raise InputError(f"mask {mask!r}: there are 'correct' and 'official'")
        self.windows = [window] * depth if isinstance(window, int) else list(window)
        if any(size < 2 or size % 2 for size in self.windows):
            raise InputError(f"window {window}: it is shifted by half of itself, so take an even one such as 128")
        self.shifts = [size // 2 * (index % 2) for index, size in enumerate(self.windows)] if shifts is None else list(shifts)
        merges = [index == 0 or (index % 2 == 1 and index < 10) for index in range(depth)] if merge is None else list(merge)
        for name, values in (("window", self.windows), ("shifts", self.shifts), ("merge", merges)):
            if len(values) != depth:
                raise InputError(f"{name} has {len(values)} entries for {depth} blocks")
        if any(not 0 <= shift < size for shift, size in zip(self.shifts, self.windows)):
            raise InputError(f"shifts {self.shifts}: each is at least 0 and below its window")
        self.num_classes, self.num_features, self.max_tokens, self.mask = num_classes, width, max_tokens, mask
        self.grad_checkpointing = False

        self.stem = ByteStem(width, kernel)
        self.positions = nn.Parameter(torch.empty(max_tokens, width))
        hidden = 4 * width if hidden is None else hidden
        self.blocks = nn.ModuleList(Block(width, heads, hidden, activation=activation) for _ in range(depth))
        self.merging = nn.ModuleDict({str(index): TokenMerging(width) for index, wanted in enumerate(merges) if wanted})
        self.norm = nn.LayerNorm(width)
        self.head = make_classifier(width, num_classes)
        nn.init.trunc_normal_(self.positions, std=width**-0.5)
        for module in (*self.blocks.modules(), *self.merging.modules(), self.head):
            _initialise(module)

    @classmethod
    def from_official(cls, state_dict: Mapping[str, Tensor], **arguments: Any) -> Self:
        """The authors' weights. Sizes are read off them; what weights do not tell is given as for the constructor.

        heads: one per 64 channels by default. window, shifts: as published by default (window=32 for the MP3 network).
        """
        try:
            symbols, width = state_dict["embeddings.weight"].shape
            known: dict[str, Any] = {
                "num_classes": len(state_dict["classifier.weight"]),
                "width": width,
                "depth": 1 + max(int(key.split(".")[1]) for key in state_dict if key.startswith("transformer.")),
                "heads": max(1, width // 64),
                "hidden": len(state_dict["transformer.0.pre_norm_ffn.1.weight"]),
                "kernel": state_dict["token_reduction_net.weight"].shape[2],
                "max_tokens": state_dict["pos_embed.pos_embed.pos_embed"].shape[2],
                "mask": "official",
            }
        except (KeyError, ValueError) as error:
            raise InputError(f"these are not weights of a ByteFormer: {error} is missing") from None
        if symbols != SYMBOLS:
            raise InputError(f"weights for {symbols} symbols; ByteFormer has {SYMBOLS}, the bytes and padding")
        merged = {int(found[1]) for key in state_dict if (found := re.match(r"downsamplers\.downsample_(\d+)\.", key))}
        known["merge"] = [index in merged for index in range(known["depth"])]
        weights = dict(state_dict)
        weights["pos_embed.pos_embed.pos_embed"] = weights["pos_embed.pos_embed.pos_embed"][0, 0]
        for index in merged:
            # the authors interleave the two tokens' channels, here one token's follow the other's
            name = f"downsamplers.downsample_{index}.reduction.weight"
            weights[name] = weights[name].unflatten(1, (-1, 2)).transpose(1, 2).flatten(1)
        return load_official(cls(**{**known, **arguments}), weights, OFFICIAL_NAMES)

    # --- what a file is turned into -------------------------------------------------------------------------------------

    @property
    def most_bytes(self) -> int:
        """Length of the longest file for which there are positions."""
        return self.stem.kernel + self.stem.stride * self.max_tokens - 1

    def tokens(self, x: Tensor) -> Tensor:
        """Files [N, L] -> tokens with their positions [N, tokens, width], before the first block."""
        tokens = self.stem(x)
        return tokens + self.positions[: tokens.shape[1]]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Files -> normalised tokens [N, T, width] behind the last block, and bool [N, T], False for those of padding (None
        when there are none)."""
        if not torch.compiler.is_compiling():
            self.check(x)
        x, real = self.tokens(x), self._real(x)
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            attend = self._attend(index, block, real)
            if self.grad_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, attend, use_reentrant=False)
            else:
                x = block(x, attend)
            if str(index) in self.merging:
                if real is not None:
                    x = x * real[..., None]
                    real = F.pad(real, (0, real.shape[1] % 2)).unflatten(1, (-1, 2)).any(2)
                x = self.merging[str(index)](x)
        return self.norm(x), real

    def forward_features(self, x: Tensor) -> Tensor:
        """Files -> tokens [N, T, width]."""
        return self.encode(x)[0]

    def forward_head(self, x: Tensor, real: Tensor | None = None, pre_logits: bool = False) -> Tensor:
        """Tokens [N, T, width] -> their mean over the real ones, and logits from it."""
        x = x.mean(1) if real is None else (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(*self.encode(x))

    def check(self, x: Tensor) -> None:
        """Raises InputError when x is not a batch of files that this network can read."""
        if x.ndim != 2 or x.is_floating_point() or x.dtype == torch.bool:
            raise InputError(f"ByteFormer takes files as integers [N, bytes], not {x.dtype} {list(x.shape)}")
        length, kernel = x.shape[1], self.stem.kernel
        if length < kernel:
            raise InputError(f"files of {length} bytes are shorter than the kernel of {kernel}: pad them with -1")
        if length > self.most_bytes:
            raise InputError(
                f"a file of {length} bytes is too long: {self.max_tokens} positions reach over {self.most_bytes} bytes; "
                "build the network with larger max_tokens"
            )
        if x.device.type == "meta" or not len(x):
            return
        low, high = (int(value) for value in x.aminmax())
        if low < PADDING or high > 255:
            raise InputError(f"bytes lie between 0 and 255 (-1 for padding), not {low} to {high}")
        if low < 0:
            padded = x < 0
            if bool((padded[:, :-1] & ~padded[:, 1:]).any()):
                raise InputError("padding (-1) stands within a file: it may only follow its last byte")
            shortest = length - int(padded.sum(1).max())
            if shortest == 0:
                raise InputError("a file is empty: all its bytes are padding")
            if shortest < kernel and self.mask == "correct":
                raise InputError(f"a file of {shortest} bytes is shorter than the kernel of {kernel}: leave it out")

    def _attend(self, index: int, block: Block, real: Tensor | None) -> Attend:
        window, shift = self.windows[index], self.shifts[index]
        if self.mask == "correct":
            return separate_windows(window, shift, real)
        bias = block.norm1.bias  # what layer norm makes of zeros
        assert isinstance(bias, Tensor)
        return rolled_windows(window, shift, block.attn.qkv(bias).unflatten(0, (3, block.attn.heads, -1)))

    def _real(self, x: Tensor) -> Tensor | None:
        """bool [N, tokens]: the tokens that the file would have alone; None when nothing is hidden."""
        if self.mask == "official" or (not torch.compiler.is_compiling() and bool((x[:, -1] >= 0).all())):
            return None
        return (x >= 0)[:, self.stem.kernel - 1 :: self.stem.stride]  # the last byte of each token

    # --- as backbones do ------------------------------------------------------------------------------------------------

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """A new last layer; 0 classes for none."""
        self.num_classes = num_classes
        self.head = make_classifier(self.num_features, num_classes)
        _initialise(self.head)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        return {"positions"}


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


OFFICIAL_NAMES = {
    r"^embeddings\.": "stem.embedding.",
    r"^token_reduction_net\.": "stem.conv.",
    r"^pos_embed\.pos_embed\.pos_embed$": "positions",
    r"^transformer\.(\d+)\.pre_norm_mha\.0\.": r"blocks.\1.norm1.",
    r"^transformer\.(\d+)\.pre_norm_mha\.1\.qkv_proj\.": r"blocks.\1.attn.qkv.",
    r"^transformer\.(\d+)\.pre_norm_mha\.1\.out_proj\.": r"blocks.\1.attn.proj.",
    r"^transformer\.(\d+)\.pre_norm_ffn\.0\.": r"blocks.\1.norm2.",
    r"^transformer\.(\d+)\.pre_norm_ffn\.1\.": r"blocks.\1.mlp.fc1.",
    r"^transformer\.(\d+)\.pre_norm_ffn\.4\.": r"blocks.\1.mlp.fc2.",
    r"^downsamplers\.downsample_(\d+)\.": r"merging.\1.",
    r"^post_transformer_norm\.": "norm.",
    r"^classifier\.": "head.",
}
