"""VAR: the transformer (teacher forcing, sampling, smoothing, editing, schedules); tokenizer cases go to `_var_tokenizer`."""

import re

import torch
from torch import Tensor
from torch.nn import functional as F

from paperworks.generators.draws import Draws, filter_logits
from paperworks.generators.next_scale import NextScaleTransformer
from paperworks.generators.next_scale_sampling import Edit, box_mask, keep_masks, sample
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQ
from paperworks.training.config import ScheduleConfig
from paperworks.training.schedules import cosine, rate
from tests.parity.case import Case
from tests.parity.replay._var_tokenizer import replay_tokenizer

TOLERANCE = (1e-4, 1e-4)


def replay(case: Case) -> dict[str, Tensor]:
    # a tokenizer case records an image or a feature map; the transformer's records class labels
    return _replay_transformer(case) if "labels" in case.inputs else replay_tokenizer(case)


def _replay_transformer(case: Case) -> dict[str, Tensor]:
    kwargs, inputs = case.kwargs, case.inputs
    model = NextScaleTransformer.from_official(case.weights, **kwargs).eval()
    quantizer = MultiScaleVQ.from_official(
        {name.removeprefix("vae.quantize."): value for name, value in case.weights.items() if name.startswith("vae.quantize.")},
        patch_nums=kwargs["patch_nums"],
        share_quant_resi=kwargs.get("share_quant_resi", 4),
        quant_resi=kwargs.get("quant_resi", 0.5),
    ).eval()
    scales = range(len(model.patch_nums))
    outputs: dict[str, Tensor] = {}
    if "idx_0" in inputs:
        indices = [inputs[f"idx_{k}"] for k in scales]
        outputs["var_input"] = quantizer.next_inputs(indices)
        outputs["logits"] = model(inputs["labels"], outputs["var_input"])
        outputs["loss"] = F.cross_entropy(outputs["logits"].flatten(0, 1), torch.cat(indices, 1).flatten())
    outputs["attn_bias"] = torch.zeros(model.length, model.length).masked_fill(~model.mask, -1e9)
    if "filter_logits" in inputs:
        filtered = filter_logits(inputs["filter_logits"], kwargs["top_k"], kwargs["top_p"])
        outputs["filter_keep_mask"] = filtered > -torch.inf

    settings = {"guidance": kwargs["cfg"], "top_k": kwargs["top_k"], "top_p": kwargs["top_p"]}
    recorded = {
        name.replace("_u_", "_uniform_"): value
        for name, value in inputs.items()
        if re.match(r"(gen|edit)_(u|exponential)_\d+$", name)
    }
    if any(name.startswith("gen_") for name in recorded):

        def observe(scale: int, logits: Tensor) -> None:
            outputs[f"gen_raw_logits_{scale}"] = logits

        draws = Draws(recorded={name.removeprefix("gen_"): value for name, value in recorded.items()})
        smooth = "gen_exponential_0" in recorded
        made = sample(model, quantizer, inputs["labels"], draws, smooth=smooth, observe=observe, **settings)
        outputs["gen_f_hat"] = made.features
    if "edit_box" in kwargs:
        top, left, bottom, right = kwargs["edit_box"]
        mask = box_mask(model.patch_nums[-1], top, left, bottom, right, inside=not kwargs.get("inpainting", True))
        keep = keep_masks(mask, model.patch_nums)
        outputs["edit_mask"] = mask
        outputs |= {f"edit_keep_{k}": keep[k] for k in scales}
        draws = Draws(recorded={name.removeprefix("edit_"): value for name, value in recorded.items()})
        smooth = "edit_exponential_0" in recorded
        null = torch.full_like(inputs["labels"], model.num_classes)
        made = sample(model, quantizer, null, draws, smooth=smooth, edit=Edit(indices, keep), **settings)
        outputs["edit_f_hat"] = made.features
    outputs |= _schedules(case)
    return {name: value for name, value in outputs.items() if name in case.outputs}


def _schedules(case: Case) -> dict[str, Tensor]:
    """Learning rate and weight decay over training, with the settings that the case's notes record."""
    notes = case.metadata.get("notes", "")
    found = re.search(
        r"steps 0,(\d+),\.\.,(\d+) of (\d+), warm-up (\d+), peak ([\d.]+), wp0 ([\d.]+), wpe ([\d.]+), wd ([\d.]+) -> ([\d.]+)",
        notes,
    )
    if not found:
        return {}
    stride, last, total, warmup, peak, start, end, decay, decay_end = map(float, found.groups())
    outputs = {}
    for kind, name in (("cosine", "lr_wd_cos"), ("flat_linear", "lr_wd_lin0")):
        schedule = ScheduleConfig(kind=kind, warmup=warmup, warmup_start=start, end=end)  # type: ignore[arg-type]
        rows = [
            (peak * rate(step, int(total), schedule), cosine(decay, decay_end)(step, int(total)))
            for step in range(0, int(last) + 1, int(stride))
        ]
        outputs[name] = torch.tensor(rows)
    return outputs
