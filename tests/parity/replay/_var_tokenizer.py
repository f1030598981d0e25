"""VAR's tokenizer: encoder, quantiser and decoder, together or in parts as the case records them."""

import torch
from torch import Tensor

from paperworks.layers.autoencoder import Decoder
from paperworks.layers.pretrained import load_official
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQVAE
from tests.parity.case import Case


def replay_tokenizer(case: Case) -> dict[str, Tensor]:
    inputs, outputs = case.inputs, {}
    encodes = any(name.startswith("encoder.") for name in case.weights)
    if not encodes:
        outputs |= _decode(_decoder_only(case), inputs["f_hat"])
        return outputs
    model = _whole(case)
    if "image" in inputs:
        # recorded images are in the reference's private range [-1, 1]
        features = model.features((inputs["image"] + 1) / 2)
        indices, totals = model.quantize.tokenize(features)
        quantized = model.quantize(features)
        outputs |= {f"idx_{k}": found for k, found in enumerate(indices)}
        outputs |= {f"f_hat_{k}": total for k, total in enumerate(totals)}
        outputs |= {
            "f": features,
            "f_hat_from_idx": model.quantize.features_of(indices)[-1],
            "f_hat_train": quantized.features,
            "quant_loss": quantized.loss,
            "var_input": model.quantize.next_inputs(indices),
            "phi_index_per_scale": torch.tensor(model.quantize.phi_indices),
        }
        for k, total in enumerate(totals):
            image = model.decode_signed(total).clamp(-1, 1)
            outputs |= {f"recon_{k}": image, f"image_{k}": image, f"rec_{k}": image}
        raw = model.decode_signed(quantized.features)
        outputs |= {name: raw.clamp(-1, 1) for name in ("recon", "rec", "reconstruction", "image", "image_rec", "recon_image")}
        outputs |= {name: raw for name in ("recon_raw", "decoder_raw", "recon_train", "rec_train", "train_recon")}
        outputs |= {f"usage_{k}": value for k, value in enumerate(model.quantize.ema_vocab_hit_SV)}
        model.quantize.using_znorm = True
        outputs |= {f"idx_znorm_{k}": found for k, found in enumerate(model.quantize.tokenize(features)[0])}
    if "f_hat" in inputs:
        outputs |= _decode(lambda features: model.decode_signed(features), inputs["f_hat"])
    return {name: value for name, value in outputs.items() if name in case.outputs}


def _whole(case: Case) -> MultiScaleVQVAE:
    """The tokenizer with whatever of it the case holds; a decoder that was not recorded is left as built."""
    model = MultiScaleVQVAE(**{k: v for k, v in case.kwargs.items() if k not in ("test_mode", "default_qresi_counts")})
    weights = model.state_dict() | case.weights if not _has(case, "decoder.") else case.weights
    return MultiScaleVQVAE.from_official(weights, **case.kwargs).eval()


def _decoder_only(case: Case):
    names = ("ch", "ch_mult", "num_res_blocks", "z_channels", "in_channels", "dropout")
    decoder = Decoder(**{name: case.kwargs[name] for name in names if name in case.kwargs})
    post = torch.nn.Conv2d(*case.weights["post_quant_conv.weight"].shape[:2], 3, padding=1)
    load_official(decoder, {k.removeprefix("decoder."): v for k, v in case.weights.items() if k.startswith("decoder.")})
    load_official(post, {k.removeprefix("post_quant_conv."): v for k, v in case.weights.items() if k.startswith("post_")})
    return lambda features: decoder.eval()(post(features))


def _has(case: Case, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in case.weights)


def _decode(decode, features: Tensor) -> dict[str, Tensor]:
    raw = decode(features)
    return {"decoder_raw": raw, "image": raw.clamp(-1, 1)}
