"""ViTDet's backbone: a plain pre-trained ViT over maps, with attention in windows but for a few.

Source: Exploring Plain Vision Transformer Backbones for Object Detection, arXiv:2203.16527.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp

from vadapt.backbones import sam, vit
from vadapt.backbones.named import IMAGENET, SCENES, Backbone
from vadapt.backbones.sam import SAMEncoder
from vadapt.errors import ConfigError, nearest
from vadapt.nn.positions import sincos_table
from vadapt.options import takes
from vadapt.partition import Constant

VARIANTS = MappingProxyType(
    {"micro": {**vit.VARIANTS["micro"], "global_blocks": (2, 5), "window": 4}, **sam.VARIANTS}
)


@takes(SAMEncoder)
class ViTDet(SAMEncoder):
    """A ViT without its class token and last norm, over maps; sees a detector's large images.

    Weights are a plain ViT's, such as MAE's; relative positions, which those lack, start at zero.
    The position table keeps the row of the class token, which nothing reads.

    Args:
        image_size: (height, width) in pixels that global blocks' relative positions are made for.
        pretrain_size: the same of the position table; images are fed with the table resized.
        positions: "learned", or "sincos", a fixed table that files do not hold.
        options: of `SAMEncoder`.

    >>> from flax import nnx
    >>> size = {"width": 16, "num_heads": 2, "patch_size": 4, "image_size": 16, "window": 2}
    >>> model = ViTDet(depth=2, global_blocks=[1], pretrain_size=8, **size, rngs=nnx.Rngs(0))
    >>> model(jnp.zeros((1, 16, 8, 3))).shape
    (1, 4, 2, 16)
    """

    num_table_extra = 1

    def __init__(
        self,
        *,
        image_size: int | Sequence[int] = 1024,
        pretrain_size: int | Sequence[int] = 224,
        positions: str = "learned",
        **options: Any,
    ):
        if positions not in ("learned", "sincos"):
            raise ConfigError(
                f"unknown positions {positions!r}; {nearest(positions, ('learned', 'sincos'))}"
            )
        options = {"neck": None, **options}
        super().__init__(image_size=pretrain_size, relative_size=image_size, **options)
        if positions == "sincos":
            self.pos_embed = Constant(jnp.asarray(sincos_table(self.width, self.grid)))


@takes(ViTDet)
def vitdet(variant: str, **options: Any) -> ViTDet:
    """ViTDet's backbone in a named size; options override its fields (see `ViTDet`).

    >>> from flax import nnx
    >>> from vadapt.partition import count, EVERYTHING, split
    >>> model = nnx.eval_shape(lambda: vitdet("base", rngs=nnx.Rngs(0)))
    >>> count(split(model, EVERYTHING).trainable)
    85889024
    """
    if variant not in VARIANTS:
        raise ConfigError(f"unknown ViTDet variant {variant!r}; {nearest(variant, VARIANTS)}")
    return ViTDet(**{**VARIANTS[variant], **options})


NAMED = {
    f"vitdet_{size}": Backbone(
        functools.partial(vitdet, size),
        statistics=SCENES if size == "micro" else IMAGENET,
        source="ViTDet, arXiv:2203.16527",
    )
    for size in VARIANTS
}
