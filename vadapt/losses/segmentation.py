"""Losses of per-pixel class scores, and the resizing that brings scores to the labels' size."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vadapt.metrics.segmentation import IGNORE


def resize_bilinear(x: Float[Array, "b h w c"], size: Sequence[int]) -> Float[Array, "b _ _ c"]:
    """Maps at another (height, width): bilinear, half-pixel centres, no antialiasing, in float32.

    PyTorch's `interpolate(mode="bilinear", align_corners=False)`. The weights are those of float64:
    `jax.image.resize` errs by 2e-6 of the range in their place.
    """
    y = x.astype(jnp.float32)
    for axis, new in ((1, size[0]), (2, size[1])):
        old = y.shape[axis]
        if old == new:
            continue
        at = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1)
        first = at.astype(np.int32)
        shape = [new if number == axis else 1 for number in range(4)]
        weight = jnp.asarray((at - first).reshape(shape), jnp.float32)
        low = jnp.take(y, first, axis)
        high = jnp.take(y, np.minimum(first + 1, old - 1), axis)
        y = low + weight * (high - low)
    return y.astype(x.dtype)


def pixel_cross_entropy(
    logits: Float[Array, "b h w k"], labels: Int[Array, "b H W"], *, ignore: int = IGNORE
) -> Float[Array, "b H W"]:
    """Cross entropy of every pixel, in float32; 0 where the label is `ignore`.

    Args:
        logits: of any size; they are resized to the labels' (see `resize_bilinear`).
        labels: class numbers. One that is neither a class nor `ignore` gives NaN: what the data
            hold by mistake must not be learnt from in silence.
    """
    logits = resize_bilinear(logits.astype(jnp.float32), labels.shape[1:])
    valid = labels != ignore
    wanted = jnp.where(valid, labels, 0).astype(jnp.int32)
    wanted = jnp.where(wanted < 0, logits.shape[-1], wanted)  # else it would count from the end
    likelihoods = jnp.take_along_axis(
        jax.nn.log_softmax(logits, axis=-1), wanted[..., None], axis=-1, mode="fill"
    )
    return jnp.where(valid, -likelihoods[..., 0], 0.0)


def cross_entropy(
    logits: Float[Array, "b h w k"],
    labels: Int[Array, "b H W"],
    *,
    ignore: int = IGNORE,
    class_weights: Float[Array, " k"] | None = None,
    pixel_weights: Float[Array, "b H W"] | None = None,
    average_all: bool = False,
) -> Float[Array, ""]:
    """Mean cross entropy over the pixels whose label is not `ignore`; 0 if there are none.

    Args:
        logits, labels: see `pixel_cross_entropy`.
        class_weights, pixel_weights: factors of the pixels' terms. The mean still divides by the
            number of pixels, not by the sum of the weights.
        average_all: divide by the number of all pixels, those that are ignored too, as
            mmsegmentation does.
    """
    losses = pixel_cross_entropy(logits, labels, ignore=ignore)
    valid = labels != ignore
    if class_weights is not None:
        weights = class_weights.astype(jnp.float32)
        losses = losses * weights[jnp.where(valid, labels, 0)]
    if pixel_weights is not None:
        losses = losses * pixel_weights.astype(jnp.float32)
    if average_all:
        return losses.mean()
    return losses.sum() / jnp.maximum(valid.sum().astype(jnp.float32), 1.0)
