"""MSA-Conv: scores, attention, outputs and all gradients of the operator, and the released layer."""

import torch
from torch import Tensor

from paperworks.layers.msa_conv import MSAConvLayer, window_mix, window_scores
from paperworks.layers.pretrained import load_official
from tests.parity.case import Case

TOLERANCE = (1e-5, 1e-5)


def replay(case: Case) -> dict[str, Tensor]:
    kernel, dilation = tuple(case.kwargs["kernel_size"]), case.kwargs["dilation"]
    result = {}
    if "q" in case.inputs:
        q, k, v = (case.inputs[name].clone().requires_grad_(True) for name in "qkv")
        dots = window_scores(q, k, kernel, dilation)
        attn = dots.softmax(1)
        out = window_mix(attn, v, kernel, dilation)
        grads = torch.autograd.grad(out, (q, k, v), case.inputs["grad_out"])
        result |= {"dots": dots, "attn": attn, "out": out} | dict(zip(("grad_q", "grad_k", "grad_v"), grads))
    if "layer_x" in case.inputs:
        given = case.kwargs["layer"]
        layer = MSAConvLayer(
            given["input_channel"],
            given["output_channel"],
            kernel,
            given.get("dilation", dilation),
            given["stride"],
            given["padding"],
            given["bias"],
            given["dropout"],
        )
        load_official(layer, case.weights, {r"^qkv_conv\.": "attention.qkv_conv."})
        result["layer_y"] = layer.eval()(case.inputs["layer_x"])
    return {name: value.detach() for name, value in result.items() if name in case.outputs}
