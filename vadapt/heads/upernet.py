"""UPerNet: pyramid pooling and a feature pyramid, each pixel classified; an FCN beside it.

Source: UPerNet, arXiv:1807.10221; FCN, arXiv:1411.4038; as in mmsegmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vadapt.data.label_maps import IGNORE
from vadapt.errors import ConfigError
from vadapt.losses.segmentation import cross_entropy
from vadapt.nn.convolutions import ConvNorm
from vadapt.nn.drop import OptionalKey, dropout, split_key
from vadapt.nn.resize import average_pool, resize_bilinear
from vadapt.partition import Head, mark


class Predictions(NamedTuple):
    """Class logits of both heads."""

    logits: Float[Array, "b h w k"]  # at the finest map's size
    auxiliary: Float[Array, "b h2 w2 k"] | None = None


class Classifier(nnx.Module):
    """Whole channels dropped in training, then a linear layer at every place."""

    def __init__(self, width: int, num_classes: int, rate: float, *, rngs: nnx.Rngs):
        self.rate = rate
        init = nnx.initializers.normal(0.01)
        self.linear = nnx.Linear(width, num_classes, kernel_init=init, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w d"], key: OptionalKey = None
    ) -> Float[Array, "b h w k"]:
        kept = dropout(jnp.ones((x.shape[0], 1, 1, x.shape[3]), x.dtype), self.rate, key)
        return self.linear(x * kept)


class FCN(nnx.Module):
    """One 3x3 convolution and a classifier."""

    def __init__(self, width: int, num_classes: int, channels: int, rate: float, *, rngs: nnx.Rngs):
        self.conv = ConvNorm(width, channels, 3, rngs=rngs)
        self.classifier = Classifier(channels, num_classes, rate, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h w d"], key: OptionalKey = None
    ) -> Float[Array, "b h w k"]:
        return self.classifier(self.conv(x), key)


class UPerNet(nnx.Module):
    """Classes of pixels from maps of several strides.

    Args:
        widths: channels of the maps, fine to coarse.
        channels: of everything inside.
        pool_scales: sides of the grids to which the coarsest map is averaged.
        dropout: of channels before the classifiers, in training.
        auxiliary: number of the map that an FCN reads too, in training; None for none.
        auxiliary_channels, auxiliary_weight: of that FCN, and of its loss.
        ignore: label of pixels that the loss leaves out.
        average_all: these pixels count in the mean of the loss, as zeros; what the released
            systems do.
        align_corners: how maps and scores are resized, see `resize_bilinear`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        *,
        channels: int = 512,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        auxiliary: int | None = 2,
        auxiliary_channels: int = 256,
        auxiliary_weight: float = 0.4,
        ignore: int = IGNORE,
        average_all: bool = True,
        align_corners: bool = False,
        rngs: nnx.Rngs,
    ):
        if len(widths) < 2:
            raise ConfigError(
                "upernet fuses maps of several sizes and was given one: name more blocks in "
                "config.task.layers, or choose --config.head.name=linear"
            )
        *fine, last = widths
        self.pool_scales, self.align_corners = tuple(pool_scales), align_corners
        self.ignore, self.average_all = ignore, average_all
        self.auxiliary_level, self.auxiliary_weight = auxiliary, auxiliary_weight

        def conv(inputs: int, kernel: int) -> ConvNorm:
            return ConvNorm(inputs, channels, kernel, rngs=rngs)

        self.pools = nnx.List([conv(last, 1) for _ in pool_scales])
        self.bottleneck = conv(last + len(self.pools) * channels, 3)
        self.laterals = nnx.List([conv(width, 1) for width in fine])
        self.outputs = nnx.List([conv(channels, 3) for _ in fine])
        self.fuse = conv(len(widths) * channels, 3)
        self.classifier = Classifier(channels, num_classes, dropout, rngs=rngs)
        self.auxiliary = (
            None
            if auxiliary is None
            else FCN(widths[auxiliary], num_classes, auxiliary_channels, dropout, rngs=rngs)
        )
        mark(self, Head)

    def __call__(
        self,
        maps: Sequence[Float[Array, "b _h _w _d"]],
        queries: Any = None,
        key: OptionalKey = None,
    ) -> Predictions:
        """Logits of maps, fine to coarse; a key makes the call a training one."""
        key, auxiliary_key = split_key(key, 2)
        *fine, last = maps
        levels = [lateral(x) for lateral, x in zip(self.laterals, fine, strict=True)]
        levels.append(self._pooled(last))
        for i in reversed(range(len(fine))):
            levels[i] = levels[i] + self._resized(levels[i + 1], levels[i].shape[1:3])
        levels = [
            *(conv(x) for conv, x in zip(self.outputs, levels[:-1], strict=True)),
            levels[-1],
        ]
        size = levels[0].shape[1:3]
        fused = self.fuse(jnp.concatenate([self._resized(x, size) for x in levels], axis=-1))
        logits = self.classifier(fused, key)
        if self.auxiliary is None or self.auxiliary_level is None:
            return Predictions(logits)
        return Predictions(logits, self.auxiliary(maps[self.auxiliary_level], auxiliary_key))

    def _pooled(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w c"]:
        pooled = [
            self._resized(conv(average_pool(x, scale)), x.shape[1:3])
            for conv, scale in zip(self.pools, self.pool_scales, strict=True)
        ]
        return self.bottleneck(jnp.concatenate([x, *pooled], axis=-1))

    def _resized(self, x: Array, size: Sequence[int]) -> Array:
        return resize_bilinear(x, size, align_corners=self.align_corners)

    def scores(self, predictions: Predictions, size: tuple[int, int]) -> Float[Array, "b h w k"]:
        """Class logits of every pixel of an image of this size."""
        return self._resized(predictions.logits.astype(jnp.float32), size)

    def loss(
        self, predictions: Predictions, labels: Int[Array, "b h w"], key: OptionalKey = None
    ) -> dict[str, Float[Array, ""]]:
        """Cross-entropy of both heads at the labels' size."""

        def loss(logits: Array) -> Array:
            logits = self._resized(logits.astype(jnp.float32), labels.shape[1:])
            options: Any = {"ignore": self.ignore, "average_all": self.average_all}
            return cross_entropy(logits, labels, **options)

        losses = {"loss_seg": loss(predictions.logits)}
        if predictions.auxiliary is not None:
            losses["loss_auxiliary"] = self.auxiliary_weight * loss(predictions.auxiliary)
        return losses
