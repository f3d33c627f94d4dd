"""Families of plain ViTs: the options in which DINOv2, CLIP, SigLIP, EVA-02 and DINOv3 differ."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from vadapt.backbones.named import HALF, IMAGENET, OPENAI, SCENES, Backbone, Statistics
from vadapt.backbones.vit import VARIANTS, vit
from vadapt.nn.activations import gelu_quick, gelu_tanh

RANK = 0  # the first to be tried on a file of unknown origin

CLIP = MappingProxyType(
    {
        "patch_bias": False,
        "first_norm": True,
        "activation": gelu_quick,
        "norm_epsilon": 1e-5,
    }
)
DINOV2 = MappingProxyType(
    {
        "patch_size": 14,
        "image_size": 518,
        "layer_scale": 1.0,
        "position_resize": "cubic_offset",
    }
)
SIGLIP = MappingProxyType({"class_token": False, "activation": gelu_tanh})
EVA02 = MappingProxyType(
    {
        "patch_size": 14,
        "mlp_ratio": 8 / 3,
        "mlp_norm": True,
        "swiglu": True,
        "key_bias": False,
        "rotary": "pairs",
    }
)
DINOV3 = MappingProxyType(
    {
        "num_registers": 4,
        "positions": "none",
        "rotary": "halves",
        "key_bias": False,
        "layer_scale": 1.0,
        "norm_epsilon": 1e-5,
    }
)
SINCOS = MappingProxyType({"positions": "sincos"})  # fixed, so that MAE's files may leave them out
REGISTERS = MappingProxyType({"num_registers": 4, "position_resize": "cubic_antialias"})


def _vit(
    variant: str,
    options: Mapping[str, Any] = MappingProxyType({}),
    pixels: Statistics = IMAGENET,
    source: str = "ViT, arXiv:2010.11929; MAE, arXiv:2111.06377",
) -> Backbone:
    """The one ViT in a size of `VARIANTS`."""
    return Backbone(functools.partial(vit, variant), options, pixels, source)


def _dinov2(variant: str) -> dict[str, Backbone]:
    """DINOv2 of a size, plain (arXiv:2304.07193) and with registers (arXiv:2309.16588)."""
    options = dict(DINOV2)
    if variant == "giant":
        options |= {"swiglu": True, "mlp_hidden": 4096}
    return {
        f"dinov2_{variant}": _vit(variant, options, source="DINOv2, arXiv:2304.07193"),
        f"dinov2_{variant}_reg": _vit(
            variant, {**options, **REGISTERS}, source="DINOv2 with registers, arXiv:2309.16588"
        ),
    }


NAMED: dict[str, Backbone] = {
    **{f"vit_{variant}": _vit(variant)._replace(others=(SINCOS,)) for variant in VARIANTS},
    "vit_micro": _vit("micro", pixels=SCENES)._replace(others=(SINCOS,)),
    **_dinov2("small"),
    **_dinov2("base"),
    **_dinov2("large"),
    **_dinov2("giant"),
    "clip_base": _vit("base", CLIP, OPENAI, source="CLIP, arXiv:2103.00020"),  # ViT-B/16
    "clip_large": _vit(
        "large", {**CLIP, "patch_size": 14}, OPENAI, source="CLIP, arXiv:2103.00020"
    ),  # ViT-L/14
    "siglip_base": _vit("base", SIGLIP, HALF, source="SigLIP, arXiv:2303.15343"),
    "siglip_large": _vit(
        "large", {**SIGLIP, "image_size": 256}, HALF, source="SigLIP, arXiv:2303.15343"
    ),
    "siglip_so400m": _vit(
        "so400m", {**SIGLIP, "image_size": 378}, HALF, source="SigLIP, arXiv:2303.15343"
    ),
    "eva02_base": _vit("base", EVA02, OPENAI, source="EVA-02, arXiv:2303.11331"),
    "eva02_large": _vit("large", EVA02, OPENAI, source="EVA-02, arXiv:2303.11331"),
    "dinov3_small": _vit("small", DINOV3, source="DINOv3, arXiv:2508.10104"),
    "dinov3_base": _vit("base", DINOV3, source="DINOv3, arXiv:2508.10104"),
    "dinov3_large": _vit("large", DINOV3, source="DINOv3, arXiv:2508.10104"),
    "dinov3_small_plus": _vit(
        "small", {**DINOV3, "swiglu": True, "mlp_hidden": 1536}, source="DINOv3, arXiv:2508.10104"
    ),
    "dinov3_huge_plus": _vit(
        "huge",
        {**DINOV3, "patch_size": 16, "num_heads": 20, "swiglu": True, "mlp_hidden": 5120},
        source="DINOv3, arXiv:2508.10104",
    ),
}
