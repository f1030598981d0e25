"""A small network of every kind in the library, by the name of a registered one and constructor arguments that shrink it."""

from __future__ import annotations

from typing import Any

from paperworks.backbones.protocol import Backbone
from paperworks.backbones.registry import entries

RESNET = {"layers": (1, 2, 1, 1), "channels": (8, 10, 12, 16)}
VOVNET = {"stem_chs": (8, 8, 16), "stage_conv_chs": (8, 10, 12, 14), "stage_out_chs": (16, 24, 32, 48), "layer_per_block": 2}
T2T = {"img_size": 64, "embed_dim": 24, "num_heads": 2, "token_dim": 8}
OTHER_CELLS = {
    "normal": {"blocks": [[0, 1, "conv_1x7_7x1", "max_pool_5x5", "concat"], [2, 1, "dil_conv_3x3", "identity"]]},
    "reduction": {"blocks": [[1, 1, "conv_3x3", "identity"]]},
}
"""of operations that NASNet-A has not; the reduction returns a state that nobody reads"""

SMALL: dict[str, dict[str, Any]] = {
    "inceptionnext_tiny": {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 40)},
    "convnext_tiny_k3": {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20)},
    "resnetrs50": {**RESNET, "stem_width": 8},
    "resnet18_ibn_a": {**RESNET, "stem_width": 8},
    "resnet50_ibn_b": {**RESNET, "stem_width": 8},
    "resnext101_ibn_a": {**RESNET, "stem_width": 8, "groups": 4, "base_width": 16},
    "se_resnet101_ibn_a": {**RESNET, "stem_width": 8},
    "densenet121_ibn_a": {"growth_rate": 6, "block_config": (3, 2, 4, 2), "num_init_features": 12},
    "kimianet": {"growth_rate": 6, "block_config": (3, 2, 4, 2), "num_init_features": 12},
    "simplenetv1_5m_m2": {"scale": 0.1},
    "simplenet_cifar_310k": {"scale": 0.25},
    "vovnet39": VOVNET,
    "ese_vovnet19b_dw": VOVNET,
    "eca_vovnet39b": VOVNET,
    "nasnetalarge": {"num_cells": 3, "filters": 8, "stem_size": 8},
    "nasnet_a_cifar_6_768": {"num_cells": 3, "filters": 4, "genotype": OTHER_CELLS},
    "unireplknet_t": {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 20), "kernel_sizes": (3, 9, (13, 3), 7), "layer_scale": 1.0},
    "tic_tiny_dilated": {
        "depths": (1, 2, 3, 1),
        "dims": (8, 12, 16, 20),
        "heads": (2, 2, 2, 2),
        "kernel_sizes": (5, 3, 3, 3),
        "dilations": (1, 2, 1, 1),
    },
    "replknet_31b": {"large_kernel_sizes": (15, 13, 9, 7), "layers": (1, 1, 1, 1), "channels": (8, 12, 16, 20)},
    "cswin_tiny": {"dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "heads": (2, 2, 4, 4), "stripes": (1, 2, 3, None)},
    "maxvit_tiny": {"dims": (8, 16, 16, 24), "depths": (1, 1, 2, 1), "stem_width": 8, "window": 3, "head_dim": 8},
    "t2t_vit_14": {**T2T, "depth": 2},
    "t2t_vit_t_14": {**T2T, "depth": 2},
    "t2t_vit_14_se": {**T2T, "depth": 2},
    "t2t_vit_16_ghost": {**T2T, "depth": 2},
    "t2t_vit_dense": {**T2T, "block_config": (2, 1), "growth_rate": 8},
    "resformer_small_patch16": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "adventurer_tiny_patch16_224": {
        "img_size": 16,
        "patch_size": 1,
        "embed_dim": 16,
        "depth": 3,
        "mamba_d_state": 8,
        "headdim": 16,
    },
    "groupmamba_tiny": {
        "stem_hidden_dim": 8,
        "embed_dims": (16, 16, 20, 32),
        "mlp_ratios": (2, 2, 2, 2),
        "depths": (1, 1, 2, 1),
    },
}


def small(name: str, **more: Any) -> Backbone:
    """The shrunken network in evaluation mode, norms with statistics that are not the initial ones."""
    model = entries()[name].build(num_classes=5, **{**SMALL[name], **more})
    return model.eval()
