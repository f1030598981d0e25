"""ByteFormer: the stem against embedding and convolution, windows against padded, rolled and masked ones, files in batches."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.analysis.counting import count_parameters
from paperworks.backbones.byteformer import VARIANTS, ByteFormer, ByteStem, TokenMerging, rolled_windows, separate_windows
from paperworks.errors import InputError
from paperworks.layers.transformer import Attention

SMALL = {"num_classes": 5, "width": 16, "depth": 4, "heads": 2, "kernel": 4, "max_tokens": 200, "window": 8}


def network(**changed) -> ByteFormer:
    torch.manual_seed(0)
    return ByteFormer(**{**SMALL, **changed}).eval()


def files(count: int, length: int) -> Tensor:
    return torch.randint(0, 256, (count, length), generator=torch.Generator().manual_seed(length))


# --- stem -------------------------------------------------------------------------------------------------------------


def literal_stem(stem: ByteStem, x: Tensor) -> Tensor:
    embedded = F.embedding(torch.where(x < 0, 256, x), stem.embedding.weight, padding_idx=256)
    return F.conv1d(embedded.transpose(1, 2), stem.conv.weight, stride=stem.stride).transpose(1, 2)


@pytest.mark.parametrize(("kernel", "length"), [(2, 9), (4, 31), (8, 64), (32, 100)])
def test_the_stem_is_an_embedding_and_a_convolution(kernel, length):
    stem = ByteStem(16, kernel)
    x = files(3, length)
    x[1, -2:] = -1
    with torch.no_grad():
        assert torch.allclose(stem(x), literal_stem(stem, x), atol=1e-6)


def test_gradients_reach_embedding_and_convolution_but_not_the_symbol_for_padding():
    stem = ByteStem(16, 4)
    x = files(3, 50)
    x[0, 40:] = -1
    weights = torch.randn(3, 24, 16)
    found = []
    for function in (stem, lambda x: literal_stem(stem, x)):
        stem.zero_grad()
        (function(x) * weights).sum().backward()
        found.append((stem.embedding.weight.grad.clone(), stem.conv.weight.grad.clone()))
    for ours, theirs in zip(*found):
        assert torch.allclose(ours, theirs, atol=1e-4)
    assert not found[0][0][256].any() and not stem.embedding.weight[256].any()


@torch.no_grad()
def test_the_kept_table_follows_the_weights():
    stem, x = ByteStem(16, 4).eval(), files(1, 40)
    first = stem(x)
    assert stem.table() is stem.table()
    stem.conv.weight.data.mul_(2)  # a way of changing weights that leaves no trace in autograd's counters
    assert torch.allclose(stem(x), 2 * first, atol=1e-6)
    stem.embedding.weight.mul_(0.5)
    assert torch.allclose(stem(x), first, atol=1e-6)


# --- windows ----------------------------------------------------------------------------------------------------------


def literal_windows(attention: Attention, x: Tensor, window: int, shift: int, masked: bool) -> Tensor:
    """Fill up with zeros, roll, cut into windows, mask, attend, put back."""
    batch, length, width = x.shape
    filled = -(-length // window) * window
    rolled = F.pad(x, (0, 0, 0, filled - length)).roll(-shift, 1).reshape(-1, window, width)
    real = (torch.arange(filled) < length).roll(-shift).view(-1, 1, window)
    allowed = torch.ones(filled // window, window, window, dtype=torch.bool)
    if shift:
        allowed[-1, : window - shift, window - shift :] = False
        allowed[-1, window - shift :, : window - shift] = False
    allowed = (allowed & real) | torch.eye(window, dtype=torch.bool)

    def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        scores = q @ k.transpose(-1, -2) * scale
        if masked:
            scores = scores.masked_fill(~allowed.repeat(batch, 1, 1)[:, None], -torch.inf)
        return scores.softmax(-1) @ v

    return attention(rolled, attend).reshape(batch, filled, width).roll(shift, 1)[:, :length]


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9, 12, 13, 15, 16, 17, 20, 23, 24, 29])
@pytest.mark.parametrize("shift", [0, 4, 3])
@torch.no_grad()
def test_windows_equal_padded_rolled_and_masked_ones(length, shift):
    torch.manual_seed(0)
    attention, x = Attention(16, 2), torch.randn(2, length, 16)
    torch.nn.init.normal_(attention.qkv.bias)
    blank = attention.qkv.bias.unflatten(0, (3, 2, 8))
    for attend, masked in ((separate_windows(8, shift), True), (rolled_windows(8, shift, blank), False)):
        for given in (x, x[:1]):
            assert torch.allclose(attention(given, attend), literal_windows(attention, given, 8, shift, masked), atol=1e-6)


@torch.no_grad()
def test_nobody_looks_across_the_ends_unless_the_weights_were_trained_so():
    x = files(1, 60)
    other = x.clone()
    other[0, -1] = (other[0, -1] + 100) % 256
    reached = {}
    for mask in ("correct", "official"):
        model = network(depth=2, merge=[False, False], mask=mask)
        reached[mask] = (model.forward_features(x) != model.forward_features(other)).any(-1)[0]
    assert not reached["correct"][:8].any() and reached["official"][:4].all()


@torch.no_grad()
def test_merging_puts_neighbours_side_by_side_and_fills_up_with_zeros():
    merging, x = TokenMerging(4), torch.randn(1, 5, 4)
    found = merging(x)
    assert found.shape == (1, 3, 4)
    assert torch.allclose(found[:, 1], merging.norm(merging.reduction(torch.cat((x[:, 2], x[:, 3]), 1))), atol=1e-6)
    assert torch.allclose(found[:, 2], merging.norm(merging.reduction(F.pad(x[:, 4], (0, 4)))), atol=1e-6)


# --- network ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "without_positions"),
    [
        ("byteformer_tiny_k32", 9_011_944, 7_205_416),
        ("byteformer_tiny_k8", 8_651_560, None),
        ("byteformer_tiny_k4", None, 6_173_224),
    ],
)
def test_published_sizes(name, parameters, without_positions):
    with torch.device("meta"):
        model = ByteFormer(**VARIANTS[name])
    found = count_parameters(model)
    assert parameters in (None, found) and without_positions in (None, found - model.positions.numel())


@pytest.mark.parametrize(("length", "kernel", "tokens"), [(150_668, 32, 9_415), (150_528, 32, 9_407), (8_400, 4, 4_199)])
def test_published_numbers_of_tokens(length, kernel, tokens):
    with torch.device("meta"):
        model = ByteFormer(depth=1, kernel=kernel)
        found = model.tokens(torch.zeros(1, length, dtype=torch.int32))
    assert found.shape == (1, tokens, 192)


@pytest.mark.parametrize("length", [4, 5, 7, 31, 50, 133])
@torch.no_grad()
def test_logits_of_a_file_do_not_depend_on_its_batch(length):
    model, file = network(), files(1, length)
    alone = model(file)
    for longer in (length + 1, length + 2, length + 17, 300):
        batch = torch.full((2, longer), -1)
        batch[0, :length] = file
        batch[1] = files(1, longer)
        assert torch.allclose(model(batch)[:1], alone, atol=1e-6)


@torch.no_grad()
def test_another_alphabet_with_its_embedding_gives_identical_logits():
    model, x = network(), files(2, 150)
    plain = model(x)
    alphabet = torch.randperm(256)
    embedding = model.stem.embedding.weight
    embedding[alphabet] = embedding[:256].clone()
    assert torch.equal(model(alphabet[x]), plain)


def test_any_integers_are_files_and_are_left_as_they_are():
    model, x = network(), files(2, 60)
    padded = x.clone()
    padded[0, 50:] = -1
    kept = padded.clone()
    with torch.no_grad():
        same = [model(x.to(dtype)) for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64)]
        model(padded)
    assert all(torch.equal(same[0], each) for each in same) and torch.equal(padded, kept)


def test_training_with_checkpointing_has_the_same_gradients():
    model, x = network().train(), files(2, 60)
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.allclose(*found, atol=1e-6)


def test_compiles_into_one_graph():
    model, x = network(), files(2, 60)
    padded = x.clone()
    padded[0, 50:] = -1
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(padded), model(padded), atol=1e-6)


def test_another_last_layer(tmp_path):
    model, x = network(), files(2, 60)
    model.reset_classifier(0)
    assert model(x).shape == (2, 16)
    model.reset_classifier(3)
    assert model.get_classifier().out_features == 3 and model(x).shape == (2, 3)
    model = network(merge=[True, False, False, True], shifts=[0, 2, 0, 4])
    model.save_pretrained(tmp_path)
    assert torch.equal(ByteFormer.from_pretrained(tmp_path)(x), model(x))


# --- official weights ---------------------------------------------------------------------------------------------------


@dataclass
class Renamed:
    """Our weights under the authors' names."""

    model: ByteFormer

    def weights(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, value in self.model.state_dict().items():
            head, _, rest = name.partition(".")
            number, _, part = rest.partition(".")
            if head == "blocks":
                layer, _, kind = part.rpartition(".")
                theirs = {
                    "norm1": "mha.0",
                    "attn.qkv": "mha.1.qkv_proj",
                    "attn.proj": "mha.1.out_proj",
                    "norm2": "ffn.0",
                    "mlp.fc1": "ffn.1",
                    "mlp.fc2": "ffn.4",
                }[layer]
                found[f"transformer.{number}.pre_norm_{theirs}.{kind}"] = value
            elif head == "merging":
                if part == "reduction.weight":
                    value = value.unflatten(1, (2, -1)).transpose(1, 2).flatten(1)
                found[f"downsamplers.downsample_{number}.{part}"] = value
            elif head == "positions":
                found["pos_embed.pos_embed.pos_embed"] = value[None, None]
            else:
                names = {"norm": "post_transformer_norm", "head": "classifier"}
                stems = {"embedding": "embeddings", "conv": "token_reduction_net"}
                found[f"{stems[number]}.{part}" if head == "stem" else f"{names[head]}.{rest}"] = value
        return found


@torch.no_grad()
def test_sizes_are_read_off_official_weights():
    model, x = network(mask="official"), files(2, 77)
    loaded = ByteFormer.from_official(Renamed(model).weights(), heads=2, window=8).eval()
    assert torch.equal(loaded(x), model(x))
    with pytest.raises(InputError, match="not weights of a ByteFormer"):
        ByteFormer.from_official({"conv.weight": torch.zeros(1)})


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kernel": 5}, "kernel 5"),
        ({"window": 7}, "window 7"),
        ({"shifts": [0, 8, 0, 4]}, "below its window"),
        ({"merge": [True]}, "merge has 1 entries for 4 blocks"),
        ({"mask": "none"}, "mask 'none'"),
    ],
)
def test_arguments_that_make_no_network(changed, message):
    with pytest.raises(InputError, match=message):
        network(**changed)


def test_files_that_cannot_be_read():
    model = network()
    hole, empty, short = (files(2, 20) for _ in range(3))
    hole[0, 5], empty[1], short[0, 3:] = -1, -1, -1
    for x, message in (
        (torch.rand(1, 20), "as integers"),
        (files(1, 20)[0], "as integers"),
        (files(1, 3), "shorter than the kernel"),
        (files(1, 500), "longer|too long: 200 positions reach over 403 bytes"),
        (files(1, 20) + 100, "between 0 and 255"),
        (files(1, 20) - 300, "between 0 and 255"),
        (hole, "within a file"),
        (empty, "is empty"),
        (short, "a file of 3 bytes is shorter"),
    ):
        with pytest.raises(InputError, match=message):
            model(x)
    assert model(files(1, 403)).shape == (1, 5)
