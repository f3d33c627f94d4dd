"""Losses of per-pixel class scores, and the resizing that brings scores to the labels' size."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vadapt.metrics.segmentation import IGNORE


def resize_bilinear(x: Float[Array, "b h w c"], size: Sequence[int]) -> Float[Array, "b _ _ c"]:
    """Maps at another (height, width): bilinear, half-pixel centres, no antialiasing, in float32.

    PyTorch's `interpolate(mode="bilinear", align_corners=False)`.
    """
    if x.shape[1:3] == tuple(size):
        return x
    shape = (x.shape[0], *size, x.shape[3])
    return jax.image.resize(x.astype(jnp.float32), shape, "linear", antialias=False).astype(x.dtype)


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
) -> Float[Array, ""]:
    """Mean cross entropy over the pixels whose label is not `ignore`; 0 if there are none.

    Args:
        logits, labels: see `pixel_cross_entropy`.
        class_weights, pixel_weights: factors of the pixels' terms. The mean still divides by the
            number of pixels, not by the sum of the weights.
    """
    losses = pixel_cross_entropy(logits, labels, ignore=ignore)
    valid = labels != ignore
    if class_weights is not None:
        weights = class_weights.astype(jnp.float32)
        losses = losses * weights[jnp.where(valid, labels, 0)]
    if pixel_weights is not None:
        losses = losses * pixel_weights.astype(jnp.float32)
    return losses.sum() / jnp.maximum(valid.sum().astype(jnp.float32), 1.0)
