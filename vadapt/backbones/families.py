"""Named backbones: a size, the options of the one ViT, and the pixel statistics of its training."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from vadapt.backbones.layers import gelu_quick
from vadapt.backbones.vit import VARIANTS

Triple = tuple[float, float, float]


class Statistics(NamedTuple):
    """Mean and standard deviation of a channel in 0-1."""

    mean: Triple
    std: Triple


IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = Statistics((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
SCENES = Statistics((0.467, 0.467, 0.467), (0.198, 0.198, 0.198))  # of `vit_micro_scenes`

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
REGISTERS = MappingProxyType({"num_registers": 4, "position_resize": "cubic_antialias"})


class Backbone(NamedTuple):
    """What a name stands for."""

    variant: str  # key of `VARIANTS`
    options: Mapping[str, Any] = MappingProxyType({})  # of `ViT`, over the variant's
    statistics: Statistics = IMAGENET


def _dinov2(variant: str) -> dict[str, Backbone]:
    """DINOv2 of a size, plain (arXiv:2304.07193) and with registers (arXiv:2309.16588)."""
    options = {**DINOV2, "swiglu": variant == "giant"}
    return {
        f"dinov2_{variant}": Backbone(variant, options),
        f"dinov2_{variant}_reg": Backbone(variant, {**options, **REGISTERS}),
    }


BACKBONES: dict[str, Backbone] = {
    **{f"vit_{variant}": Backbone(variant) for variant in VARIANTS},
    "vit_micro": Backbone("micro", statistics=SCENES),
    **_dinov2("small"),
    **_dinov2("base"),
    **_dinov2("large"),
    **_dinov2("giant"),
    "clip_base": Backbone("base", CLIP, OPENAI),  # ViT-B/16
    "clip_large": Backbone("large", {**CLIP, "patch_size": 14}, OPENAI),  # ViT-L/14
}
