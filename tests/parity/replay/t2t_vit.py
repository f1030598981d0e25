"""T2T-ViT: tokens-to-token and the authors' networks step by step, and the resizing of position tables."""

from typing import Any

import torch
from torch import Tensor

from paperworks.backbones.t2t_blocks import BlockKind, DenseBlock, T2TBlock
from paperworks.backbones.t2t_vit import ENTRIES, DenseT2TViT, T2TViT, resize_positions, sinusoid_table
from paperworks.backbones.tokens_to_token import (
    TokenPerformer,
    TokenStep,
    TokensToToken,
    TokenTransformer,
    as_map,
    as_tokens,
)
from tests.parity.case import Case

TOLERANCE = (1e-4, 1e-4)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    path, _, rest = case.official.partition(":")
    what = rest.split()[0]
    if what == "resize_pos_embed":
        return {"resized": _resized(case)}
    if what == "get_sinusoid_encoding":
        return dict.fromkeys(case.outputs, sinusoid_table(**_table_arguments(case.kwargs))[None])
    if what in ("Token_performer", "Token_transformer"):
        return dict.fromkeys(case.outputs, _token_step(what, case))
    if what == "Block":
        return dict.fromkeys(case.outputs, _block(path, case))
    if what == "T2T_module":
        tokenizer = _tokenizer(case)
        result = _tokens(tokenizer, case.inputs["x"])
    else:
        model = _network(what, case)
        result = _tokens(model.tokens_to_token, case.inputs["x"])
        tokens = model.forward_features(case.inputs["x"])
        result |= {"pos_embed": model.pos_embed, "logits": model(case.inputs["x"]), "features": tokens[:, 0]}
    return {name: value for name, value in result.items() if name in case.outputs}


def _resized(case: Case) -> Tensor:
    table = case.inputs["pos_embed"]
    old = round((table.shape[1] - 1) ** 0.5)
    new = case.kwargs.get("new_grid")
    if new is None:
        new = round((case.inputs["posemb_new"].shape[1] - 1) ** 0.5)
    return resize_positions(table, (old, old), (new, new))


def _table_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    names = {"n_position": "positions", "d_hid": "dim"}
    return {names.get(name, name): value for name, value in kwargs.items()}


def _token_step(what: str, case: Case) -> Tensor:
    """One attention of tokens-to-token on a sequence: a map of one column with windows of one token."""
    module: TokenStep
    inputs, width = case.kwargs["dim"], case.kwargs["in_dim"]
    if what == "Token_performer":
        features = int(width * case.kwargs.get("kernel_ratio", 0.5))
        module = TokenPerformer(inputs, width, (1, 1, 0), features=features)
    else:
        module = TokenTransformer(inputs, width, (1, 1, 0))
    module.load_state_dict(case.weights)
    return as_tokens(module.eval()(as_map(case.inputs["x"], case.inputs["x"].shape[1], 1)))


def _block(path: str, case: Case) -> Tensor:
    names = {"num_heads": "heads", "growth_rate": "growth"}
    arguments = {"heads": 8, "mlp_ratio": 4.0} | {names.get(name, name): value for name, value in case.kwargs.items()}
    kind: BlockKind = "se" if path.endswith("_se.py") else "ghost" if path.endswith("_ghost.py") else "plain"
    block = DenseBlock(**arguments) if path.endswith("_dense.py") else T2TBlock(**arguments, kind=kind)
    block.load_state_dict(case.weights)
    return block.eval()(case.inputs["x"])


def _tokenizer(case: Case) -> TokensToToken:
    arguments = {name: value for name, value in case.kwargs.items() if name != "img_size"}
    module = TokensToToken(**arguments)
    weights = {name.removeprefix("tokens_to_token."): value for name, value in case.weights.items()}
    module.load_state_dict(weights)
    return module.eval()


def _network(what: str, case: Case) -> Any:
    kinds: dict[str, Any] = {
        "T2T_ViT": (T2TViT, {}),
        "T2T_ViT_SE": (T2TViT, {"block": "se"}),
        "T2T_ViT_Ghost": (T2TViT, {"block": "ghost"}),
        "T2T_ViT_Dense": (DenseT2TViT, {}),
    }
    if what in ENTRIES:
        return ENTRIES[what].network.from_official(case.weights, **{**ENTRIES[what].arguments, **case.kwargs}).eval()
    network, more = kinds[what]
    # what the authors' classes take when nothing is said
    usual = {"embed_dim": 768, "num_heads": 12, "mlp_ratio": 4.0}
    usual |= {"growth_rate": 32, "block_config": (3, 4, 6, 3)} if network is DenseT2TViT else {"depth": 12}
    return network.from_official(case.weights, **{**usual, **more, **case.kwargs}).eval()


def _tokens(tokenizer: Any, x: Tensor) -> dict[str, Tensor]:
    first: TokenStep = tokenizer.attention1
    step1 = first(x)
    step2 = tokenizer.attention2(step1)
    return {
        "unfold0_mean_channel": first.split(x).mean(-1).flatten(1),
        "t2t_attention1": as_tokens(step1),
        "t2t_attention2": as_tokens(step2),
        "tokens": tokenizer(x),
    }
