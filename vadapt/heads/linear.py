"""Linear classifiers of patches and of images: how far frozen features go by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

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


class LinearLabels(nnx.Module):
    """The mean of the last map, normalised, and one linear layer."""

    def __init__(self, widths: Sequence[int], num_labels: int, *, rngs: nnx.Rngs):
        self.norm = BatchNorm(widths[-1], rngs=rngs)
        init = nnx.initializers.normal(0.01)
        self.linear = nnx.Linear(widths[-1], num_labels, kernel_init=init, rngs=rngs)
        mark(self, Head)

    def __call__(
        self, maps: Sequence[Float[Array, "b _h _w _d"]], key: OptionalKey = None
    ) -> LabelPredictions:
        return LabelPredictions(self.linear(self.norm(maps[-1].mean(axis=(1, 2)))))
