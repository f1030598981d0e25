"""TiTok: its tokenizer in both stages and as a VAE, the MaskGIT-VQGAN behind it, both generators, the discriminator."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from paperworks.generators.draws import Draws
from paperworks.generators.masked import MaskedTransformer, masked_prediction_loss
from paperworks.generators.masked_sampling import MaskedSampling, masked_count, sample
from paperworks.generators.random_order import RandomOrderTransformer, sample_tokens
from paperworks.layers.discriminators import BlurDiscriminator
from paperworks.layers.pretrained import load_official
from paperworks.objectives.adversarial import LeCam, judge_loss, maker_loss
from paperworks.objectives.proxy_codes import ProxyCodes
from paperworks.tokenizers.maskgit_vqgan import MaskGITVQGAN
from paperworks.tokenizers.titok import TiTok
from paperworks.training.objective import Context
from tests.parity.case import Case

TOLERANCE = (1e-4, 1e-4)


@torch.no_grad()
def replay(case: Case) -> dict[str, Tensor]:
    weights = case.weights
    if "config" in case.kwargs:
        result = _vae(case) if case.kwargs["config"]["model"]["vq_model"].get("quantize_mode") == "vae" else _vq(case)
    elif "block_in.0.weight" in weights:
        result = _discriminator(case)
    elif "target_aware_pos_embed" in weights:
        result = _random_order(case)
    elif "quantize.embedding.weight" in weights:
        result = _vqgan(case)
    else:
        result = _masked(case)
    return {name: value for name, value in result.items() if name in case.outputs}


def _tokenizer(case: Case) -> TiTok:
    tiny = case.kwargs.get("tiny_model_size", {})
    sizes = {"tiny": (tiny["width"], tiny["layers"], tiny["heads"])} if tiny else {}
    options = {name: case.kwargs[name] for name in ("config", "pixel_decoder") if name in case.kwargs}
    return TiTok.from_official(case.weights, sizes=sizes, **options).eval()


class Recorded(nn.Module):
    """A teacher of stage 1 whose codes were recorded."""

    def __init__(self, codes: Tensor, vocab_size: int):
        super().__init__()
        self.codes, self.spec = codes, SimpleNamespace(vocab_size=vocab_size, tokens=codes.shape[1])

    def encode(self, images: Tensor) -> list[Tensor]:
        return [self.codes]


def _vq(case: Case) -> dict[str, Tensor]:
    model = _tokenizer(case)
    if model.pixel_decoder is not None:  # stage 2
        model.freeze_codes()
    result: dict[str, Tensor] = {}
    if "image" in case.inputs:
        image = case.inputs["image"]
        z = model.features(image)
        quantized = model.quantize(z)
        passed = model.quantize.lookup(quantized.indices[0])
        result |= {
            "z": z.transpose(1, 2)[:, :, None],
            "tokens": quantized.indices[0][:, None],
            "z_quantized": passed.transpose(1, 2)[:, :, None],
            "quantizer_loss": quantized.loss,
        }
        logits = model.decode_logits(quantized.features)
        result |= {"logits": logits, "logits_from_tokens": model.decode_logits(passed)}
        if "target_codes" in case.inputs:
            weight = case.kwargs["config"].get("losses", {}).get("quantizer_weight", 1.0)
            teacher = Recorded(case.inputs["target_codes"], logits.shape[1])
            learner = ProxyCodes(model, teacher, codebook_weight=weight).eval()
            logs = learner.loss({"image": image}, "generator", Context(0, 1, 0)).logs
            result |= {"stage1_ce": logs["proxy_loss"], "stage1_total_loss": logs["loss"]}
        if model.pixel_decoder is not None:
            result["decoded"] = model.decode_raw(quantized.features)
        elif model.target == "pixels":
            result["decoded"] = logits
        model.quantize.frozen = True  # codes that do not learn leave the commitment alone
        result["commitment_loss"] = model.quantize(z).loss
        result["codebook_loss"] = quantized.loss - result["commitment_loss"]
    if "tokens_in" in case.inputs:
        tokens = case.inputs["tokens_in"].flatten(1)
        result["decoded_from_tokens_in"] = model.decode_raw(model.quantize.lookup(tokens))
    return result


def _vae(case: Case) -> dict[str, Tensor]:
    model = _tokenizer(case)
    posterior, moments = model.quantize, model.features(case.inputs["image"])
    mean, log_variance = posterior.parts(moments)
    result = {
        "moments": moments,
        "mean": mean,
        "logvar": log_variance,
        "decoded_mean": model.decode_raw(posterior(moments).features),
        "kl_per_sample": posterior.divergence(moments).sum((1, 2)),
    }
    if "posterior_noise" in case.inputs:
        result["decoded_sample"] = model.decode_raw(posterior(moments, case.inputs["posterior_noise"]).features)
    return result


def _vqgan(case: Case) -> dict[str, Tensor]:
    model = MaskGITVQGAN.from_official(case.weights, **case.kwargs).eval()
    hidden = model.features(case.inputs["image"])
    quantized = model.quantize(hidden)
    made = model.decode_raw(quantized.features)
    return {
        "hidden": hidden.permute(0, 3, 1, 2),
        "indices": quantized.indices[0],
        "vq_loss": quantized.loss,
        "reconstruction": made,
        "clamped": made.clamp(0, 1),
    }


def _masked(case: Case) -> dict[str, Tensor]:
    kwargs, inputs = case.kwargs, case.inputs
    model = MaskedTransformer.from_official(case.weights, **kwargs["model"]).eval()
    labels, result = inputs["class"], {}
    if "ids" in inputs:
        result["logits_cond"] = model(labels, inputs["ids"])
        result["logits_uncond"] = model(torch.full_like(labels, model.num_classes), inputs["ids"])
        if "targets" in inputs:
            given = kwargs.get("losses", {})
            result["mlm_loss"] = masked_prediction_loss(
                result["logits_cond"],
                inputs["targets"],
                inputs["masks"].bool(),
                given.get("label_smoothing", 0.1),
                given.get("loss_weight_unmasked_token", 0.1),
            )
    given = kwargs.get("generate")
    if given:
        settings = MaskedSampling(
            steps=given.get("num_sample_steps", 8),
            guidance=given.get("guidance_scale", 3.0),
            schedule=given.get("guidance_decay", "constant"),
            power=given.get("guidance_scale_pow", 3.0),
            noise=given.get("randomize_temperature", 4.5),
            soften=given.get("softmax_temperature_annealing", False),
        )
        recorded = {name.removeprefix("uniform_"): value for name, value in inputs.items() if name.startswith("uniform_")}
        result["generated"] = sample(model, labels, Draws(recorded=recorded), settings)
        wanted, steps = torch.tensor(model.tokens), settings.steps
        result["mask_len_schedule_raw"] = torch.stack([masked_count(wanted, (step + 1) / steps) for step in range(steps)])
    return result


def _random_order(case: Case) -> dict[str, Tensor]:
    model = RandomOrderTransformer.from_official(case.weights, **case.kwargs["model"]).eval()
    inputs, result = case.inputs, {}
    labels = inputs["class"]
    if "ids" in inputs:
        ids, orders = inputs["ids"], inputs.get("orders")
        result["logits"] = model.all_logits(labels, ids, orders)
        result["labels"] = ids if orders is None else ids.gather(1, orders)
        result |= {
            name: model.all_logits(labels, ids[:, : int(name.removeprefix("logits_prefix"))])
            for name in case.outputs
            if name.startswith("logits_prefix")
        }
    if "u" in inputs:
        given = case.kwargs.get("generate", {})
        result["generated"] = sample_tokens(
            model,
            labels,
            Draws(recorded={"uniform": inputs["u"]}),
            guidance=given.get("guidance_scale", 0.0),
            power=given.get("guidance_scale_pow", 1.0),
            temperature=given.get("randomize_temperature", 1.0),
        )
    return result


def _discriminator(case: Case) -> dict[str, Tensor]:
    kwargs, inputs = case.kwargs, case.inputs
    model = BlurDiscriminator(kwargs.get("num_channels", 3), kwargs.get("hidden_channels", 128), kwargs.get("num_stages", 3))
    load_official(model, case.weights)
    real, fake = model(inputs["real"]), model(inputs["fake"])
    lecam = LeCam()
    lecam.real, lecam.made = inputs["ema_real"].squeeze(), inputs["ema_fake"].squeeze()
    return {
        "logits_real": real,
        "logits_fake": fake,
        "hinge_d": judge_loss(real, fake, "hinge"),
        "gen_loss": maker_loss(fake, "hinge"),
        "lecam": lecam(real, fake),
    }
