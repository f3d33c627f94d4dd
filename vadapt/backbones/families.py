"""Named backbones: a class, its options, and the pixel statistics of its training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from vadapt.backbones.convnext import VARIANTS as CONVNEXTS
from vadapt.backbones.convnext import convnext
from vadapt.backbones.resnet import ResNet
from vadapt.backbones.sam import VARIANTS as SAMS
from vadapt.backbones.sam import sam
from vadapt.backbones.vig import VARIANTS as VIGS
from vadapt.backbones.vig import vig
from vadapt.backbones.vit import VARIANTS, vit
from vadapt.nn.activations import gelu_quick, gelu_tanh
from vadapt.options import takes

Triple = tuple[float, float, float]


class Statistics(NamedTuple):
    """Mean and standard deviation per channel, in 0-1."""

    mean: Triple
    std: Triple


IMAGENET = Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = Statistics((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = Statistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
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


class Backbone(NamedTuple):
    """A named backbone: `build(**options)` is the model, with `rngs` among the options."""

    build: Callable[..., Any]
    options: Mapping[str, Any] = MappingProxyType({})
    statistics: Statistics = IMAGENET
    source: str = ""
    others: tuple[Mapping[str, Any], ...] = ()  # options that its files may be of, and do not tell


def _vit(
    variant: str,
    options: Mapping[str, Any] = MappingProxyType({}),
    pixels: Statistics = IMAGENET,
    source: str = "ViT, arXiv:2010.11929; MAE, arXiv:2111.06377",
) -> Backbone:
    """The one ViT in a size of `VARIANTS`."""
    return Backbone(functools.partial(vit, variant), options, pixels, source)


def _convolutional(build: Callable[..., Any], source: str) -> Backbone:
    """One that has no table of positions: `image_size` may be given and makes no difference."""

    @takes(build)
    def create(*, image_size: Any = None, **options: Any) -> Any:
        return build(**options)

    return Backbone(create, source=source)


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


BACKBONES: dict[str, Backbone] = {
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
    **{
        f"sam_{size}": Backbone(
            functools.partial(sam, size), source="Segment Anything, arXiv:2304.02643"
        )
        for size in SAMS
    },
    **{
        f"resnet{depth}": _convolutional(
            functools.partial(ResNet, depth), "ResNet, arXiv:1512.03385"
        )
        for depth in (50, 101)
    },
    **{
        f"resnet{depth}_v1c": _convolutional(
            functools.partial(ResNet, depth, deep_stem=True), "ResNet-C, arXiv:1812.01187"
        )
        for depth in (50, 101)
    },
    **{
        f"convnext_{size}": _convolutional(
            functools.partial(convnext, size), "ConvNeXt, arXiv:2201.03545"
        )
        for size in CONVNEXTS
    },
    **{
        name: Backbone(
            functools.partial(vig, name), statistics=pixels, source="Vision GNN, arXiv:2206.00272"
        )
        for name, pixels in {**dict.fromkeys(VIGS, IMAGENET), "vig_micro": SCENES}.items()
    },
}
