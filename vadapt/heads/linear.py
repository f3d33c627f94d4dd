"""Linear classifiers of patches and of images: how far frozen features go by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vadapt.errors import ConfigError, nearest
from vadapt.losses import PIXEL_LOSSES
from vadapt.nn.convolutions import BatchNorm
from vadapt.nn.drop import OptionalKey
from vadapt.nn.resize import resize_bilinear
from vadapt.partition import Head, mark


class LinearHead(nnx.Module):
    """Maps resized to the first one's size, side by side, normalised, and one linear layer.

    With one map it is the linear head of DINOv2's evaluation, with several its multi-scale one.

    Args:
        widths: channels of the maps.
        loss: a name in `vadapt.losses.PIXEL_LOSSES`, or the place of a function like those.

    Source: DINOv2, arXiv:2304.07193, section 7.4.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        *,
        loss: str = "cross_entropy",
        rngs: nnx.Rngs,
    ):
        self.pixel_loss = PIXEL_LOSSES[loss]
        self.norm = BatchNorm(sum(widths), rngs=rngs)
        init = nnx.initializers.normal(0.01)
        self.linear = nnx.Linear(sum(widths), num_classes, kernel_init=init, rngs=rngs)
        mark(self, Head)

    def __call__(
        self,
        maps: Sequence[Float[Array, "b _h _w _d"]],
        queries: Any = None,
        key: OptionalKey = None,
    ) -> Float[Array, "b h w k"]:
        size = maps[0].shape[1:3]
        x = jnp.concatenate([resize_bilinear(x, size) for x in maps], axis=-1)
        return self.linear(self.norm(x))

    def scores(
        self, predictions: Float[Array, "b h w k"], size: tuple[int, int]
    ) -> Float[Array, "b _h _w k"]:
        """Class logits of every pixel of an image of this size."""
        return resize_bilinear(predictions.astype(jnp.float32), size)

    def loss(
        self,
        predictions: Float[Array, "b _h _w k"],
        labels: Int[Array, "b h w"],
        key: OptionalKey = None,
    ) -> dict[str, Float[Array, ""]]:
        """Cross-entropy at the labels' size; 255 is ignored."""
        _, height, width = labels.shape
        return {"loss_seg": self.pixel_loss(self.scores(predictions, (height, width)), labels)}


class LabelPredictions(NamedTuple):
    """Predictions of heads for labels of images."""

    logits: Float[Array, "b l"]
    # For each map, the places that every label took from, by group; of heads that choose places.
    chosen: tuple[Int[Array, "b g l k"], ...] = ()


# What is averaged for an image: patches and prompts alike ("original" in VPT's code), or either.
POOLS = ("img_pool", "imgprompt_pool", "prompt_pool", "original")


def pooled(
    map_: Float[Array, "b h w d"], prompts: Float[Array, "b p d"] | None, pool: str
) -> Float[Array, "b d"]:
    """The mean of an image's patches ("img_pool"), prompts ("prompt_pool"), or of them all.

    Raises:
        ConfigError: prompts are wanted, and the backbone gives none; or no such pool.

    Source: VPT, arXiv:2203.12119, released code; "original" and "imgprompt_pool" are the same.
    """
    if pool not in POOLS:
        raise ConfigError(f"unknown pool {pool!r}; {nearest(pool, POOLS)}")
    patches = map_.reshape(map_.shape[0], -1, map_.shape[-1])
    if pool == "img_pool":
        return patches.mean(axis=1)
    if prompts is None:
        raise ConfigError(
            f"pool {pool!r} is of prompts, and the backbone gives none: apply vpt, or choose "
            "'img_pool'"
        )
    if pool == "prompt_pool":
        return prompts.mean(axis=1)
    return jnp.concatenate([prompts, patches], axis=1).mean(axis=1)


class LinearLabels(nnx.Module):
    """The mean of the last map, normalised, and one linear layer.

    Args:
        pool: what the mean is of, see `pooled`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_labels: int,
        *,
        pool: str = "img_pool",
        rngs: nnx.Rngs,
    ):
        self.pool = pool
        self.reads = () if pool == "img_pool" else ("prompts",)
        self.norm = BatchNorm(widths[-1], rngs=rngs)
        init = nnx.initializers.normal(0.01)
        self.linear = nnx.Linear(widths[-1], num_labels, kernel_init=init, rngs=rngs)
        mark(self, Head)

    def __call__(
        self,
        maps: Sequence[Float[Array, "b _h _w _d"]],
        prompts: Float[Array, "b p d"] | None = None,
        key: OptionalKey = None,
    ) -> LabelPredictions:
        if self.pool == "img_pool":
            return LabelPredictions(self.linear(self.norm(maps[-1].mean(axis=(1, 2)))))
        return LabelPredictions(self.linear(self.norm(pooled(maps[-1], prompts, self.pool))))
