"""Losses of per-pixel class scores, and the resizing that brings scores to the labels' size."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vadapt.metrics.segmentation import IGNORE


def resize_bilinear(
    x: Float[Array, "b h w c"], size: Sequence[int], *, align_corners: bool = False
) -> Float[Array, "b _ _ c"]:
    """Maps at another (height, width): bilinear, no antialiasing, in float32.

    The weights are those of float64: `jax.image.resize` errs by 2e-6 of the range in their place.

    Args:
        align_corners: the centres of the corner pixels stay where they are, and a side of 1 is its
            first pixel; else the edges of the corner pixels do (half-pixel centres). As in
            PyTorch's `interpolate(mode="bilinear")`.
    """
    y = x.astype(jnp.float32)
    for axis, new in ((1, size[0]), (2, size[1])):
        old = y.shape[axis]
        if old == new:
            continue
        if align_corners:
            at = np.arange(new) * ((old - 1) / max(new - 1, 1))
        else:
            at = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1)
        first = at.astype(np.int32)
        shape = [new if number == axis else 1 for number in range(4)]
        weight = jnp.asarray((at - first).reshape(shape), jnp.float32)
        low = jnp.take(y, first, axis)
        high = jnp.take(y, np.minimum(first + 1, old - 1), axis)
        y = low + weight * (high - low)
    return y.astype(x.dtype)


def pixel_cross_entropy(
    logits: Float[Array, "b h w k"],
    labels: Int[Array, "b H W"],
    *,
    ignore: int = IGNORE,
    align_corners: bool = False,
) -> Float[Array, "b H W"]:
    """Cross entropy of every pixel, in float32; 0 where the label is `ignore`.

    Args:
        logits: of any size; they are resized to the labels' (see `resize_bilinear`).
        labels: class numbers. One that is neither a class nor `ignore` gives NaN: what the data
            hold by mistake must not be learnt from in silence.
        align_corners: of that resizing.
    """
    size = labels.shape[1:]
    logits = resize_bilinear(logits.astype(jnp.float32), size, align_corners=align_corners)
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
    align_corners: bool = False,
) -> Float[Array, ""]:
    """Mean cross entropy over the pixels whose label is not `ignore`; 0 if there are none.

    Args:
        logits, labels, align_corners: see `pixel_cross_entropy`.
        class_weights, pixel_weights: factors of the pixels' terms. The mean still divides by the
            number of pixels, not by the sum of the weights.
        average_all: divide by the number of all pixels, those that are ignored too, as
            mmsegmentation does.
    """
    losses = pixel_cross_entropy(logits, labels, ignore=ignore, align_corners=align_corners)
    valid = labels != ignore
    if class_weights is not None:
        weights = class_weights.astype(jnp.float32)
        losses = losses * weights[jnp.where(valid, labels, 0)]
    if pixel_weights is not None:
        losses = losses * pixel_weights.astype(jnp.float32)
    if average_all:
        return losses.mean()
    return losses.sum() / jnp.maximum(valid.sum().astype(jnp.float32), 1.0)
