"""Frozen towers that students learn from: a ViT, perhaps a projection, and where it looks.

They are options of the one ViT, with the projection and the statistics that their files need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vadapt.backbones.named import IMAGENET, OPENAI, SCENES, Statistics, Triple
from vadapt.backbones.vit import VARIANTS, ViT, vit
from vadapt.backbones.vit_families import CLIP
from vadapt.errors import ConfigError, nearest


class Kind(NamedTuple):
    """The ways in which a published teacher differs from a plain ViT of its size."""

    variant: str
    projection: int | None = None  # width of its features; None: those of the trunk
    options: Mapping[str, Any] = MappingProxyType({})  # of `ViT`
    names: str = ".*"  # of a checkpoint, those of the tower; the rest (text) is passed over
    statistics: Statistics = IMAGENET  # which most were trained with

    @property
    def mean(self) -> Triple:
        """One number per channel, in 0-1."""
        return self.statistics.mean

    @property
    def std(self) -> Triple:
        """One number per channel, in 0-1."""
        return self.statistics.std

    @property
    def width(self) -> int:
        """Numbers a token has."""
        return self.projection or VARIANTS[self.variant]["width"]


TEACHERS: dict[str, Kind] = {
    "clip_b16": Kind(
        "base",
        512,
        CLIP,
        r"(target_generator\.tokenizer\.)?visual\..*|vision_model\..*|visual_projection\.weight",
        OPENAI,
    ),
    "slip_b16": Kind("base", 512, names=r"(module\.)?(visual\..*|image_projection)"),
    "dino_b16": Kind("base", names=r"(?!head\.).*"),
    # For laptops and tests; the shipped `vit_micro_scenes` is one, with its statistics.
    "vit_micro": Kind(
        "micro",
        options={"positions": "sincos"},
        names="(?!decoder/).*",
        statistics=SCENES,
    ),
}


class Tower(nnx.Module):
    """A ViT whose tokens, projected if it has a projection, are what a student predicts.

    Args:
        projection: width of the features; None for those of the trunk.
        mean, std: of a channel in 0-1, as the tower was trained.

    Source: MILAN's use of CLIP, arXiv:2208.06049; the projection acts on all tokens, not only on
    the class token.
    """

    def __init__(
        self,
        backbone: ViT,
        projection: int | None = None,
        *,
        mean: Triple = (0.5, 0.5, 0.5),
        std: Triple = (0.5, 0.5, 0.5),
        rngs: nnx.Rngs,
    ):
        self.backbone = backbone
        self.width = projection or backbone.width
        self.mean, self.std = mean, std
        shape = (backbone.width, self.width)
        initial = nnx.initializers.normal(backbone.width**-0.5)
        self.proj = (
            None if projection is None else nnx.Param(initial(rngs.params(), shape, jnp.float32))
        )

    def __call__(
        self, images: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b n e"], Float[Array, "b n n"]]:
        """Features of all tokens, class token first, and the last block's mean attention."""
        tokens, attention = self.backbone.with_attention(images)
        if self.proj is not None:
            tokens = jnp.einsum("bnd,de->bne", tokens, self.proj[...])
        return tokens, attention

    def normalise(self, images_01: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Images in 0-1 with the statistics of this tower's own training."""
        mean, std = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (self.mean, self.std))
        return (images_01 - mean) / std


def kind_of(name: str) -> Kind:
    """Return the kind of a teacher by its name.

    Raises:
        ConfigError: no such teacher.
    """
    if name not in TEACHERS:
        raise ConfigError(f"unknown teacher {name!r}; {nearest(name, TEACHERS)}")
    return TEACHERS[name]


def tower(name: str, *, image_size: int | Sequence[int], rngs: nnx.Rngs) -> Tower:
    """A teacher by name ("clip_b16", "slip_b16", "dino_b16", "vit_micro"), with random weights.

    >>> tower("vit_micro", image_size=32, rngs=nnx.Rngs(0)).width
    96
    """
    kind = kind_of(name)
    backbone = vit(kind.variant, image_size=image_size, rngs=rngs, **kind.options)
    return Tower(backbone, kind.projection, mean=kind.mean, std=kind.std, rngs=rngs)
