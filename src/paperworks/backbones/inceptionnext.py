"""InceptionNeXt (2303.16900, table 3) and the ConvNeXt-T variants of its study: names, sizes and where released weights are."""

from __future__ import annotations

from typing import Any

from paperworks.backbones.convnext import ConvNeXt
from paperworks.backbones.metanext import MetaNeXt
from paperworks.backbones.registry import Entry

RELEASES = "https://github.com/sail-sg/inceptionnext/releases/download/model/"

_TINY = {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)}
_BASE = {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)}


def _inception(hub: str, top1: float, arguments: dict[str, Any], **cfg: Any) -> Entry:
    """hub: the same weights, with the same keys, as timm publishes them."""
    cfg = {"hf_hub_id": f"timm/{hub}", "first_conv": "stem.0", "classifier": "head.fc2", "license": "apache-2.0"} | cfg
    return Entry(MetaNeXt, arguments, cfg, top1)


def _convnext(name: str, top1: float, **arguments: Any) -> Entry:
    cfg = {"url": f"{RELEASES}{name}_1k_224_ema.pth", "first_conv": "downsample_layers.0.0", "classifier": "head"}
    return Entry(ConvNeXt, _TINY | arguments, cfg, top1)


ENTRIES: dict[str, Entry] = {
    "inceptionnext_atto": _inception(
        "inception_next_atto.sail_in1k",
        75.3,
        {
            "depths": (2, 2, 6, 2),
            "dims": (40, 80, 160, 320),
            "mixer": {"band_kernel_size": 9, "branch_ratio": 0.25},
        },
    ),
    "inceptionnext_tiny": _inception("inception_next_tiny.sail_in1k", 82.3, _TINY),
    "inceptionnext_small": _inception("inception_next_small.sail_in1k", 83.5, _TINY | {"depths": (3, 3, 27, 3)}),
    "inceptionnext_base": _inception("inception_next_base.sail_in1k", 84.0, _BASE, crop_pct=0.95),
    "inceptionnext_base_384": _inception(
        "inception_next_base.sail_in1k_384", 85.2, _BASE, input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0
    ),
    # table 1: what kernel size and share of convolved channels cost
    "convnext_tiny_k5": _convnext("convnext_tiny_k5", 82.0, kernel_sizes=5),
    "convnext_tiny_k3": _convnext("convnext_tiny_k3", 81.5, kernel_sizes=3),
    "convnext_tiny_k3_par1_2": _convnext("convnext_tiny_k3_par1_2", 81.4, kernel_sizes=3, conv_ratio=1 / 2),
    "convnext_tiny_k3_par3_8": _convnext("convnext_tiny_k3_par3_8", 81.4, kernel_sizes=3, conv_ratio=3 / 8),
    "convnext_tiny_k3_par1_4": _convnext("convnext_tiny_k3_par1_4", 81.3, kernel_sizes=3, conv_ratio=1 / 4),
    "convnext_tiny_k3_par1_8": _convnext("convnext_tiny_k3_par1_8", 80.8, kernel_sizes=3, conv_ratio=1 / 8),
    "convnext_tiny_k3_par1_16": _convnext("convnext_tiny_k3_par1_16", 80.1, kernel_sizes=3, conv_ratio=1 / 16),
}
"""by the authors' names; top-1 as their repository prints it"""


def isotropic(width: int = 384, depth: int = 18, **arguments: Any) -> MetaNeXt:
    """One stage of 16x16 patches, as a ViT has it (the paper's isotropic comparison; no weights were released)."""
    given: dict[str, Any] = {"depths": (depth,), "dims": (width,), "mlp_ratios": 4, "patch_size": 16, "head": "norm"}
    return MetaNeXt(**given | arguments)
