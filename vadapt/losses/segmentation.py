"""Losses of per-pixel class scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vadapt.data.label_maps import IGNORE
from vadapt.errors import ShapeError
from vadapt.micro_batches import batch_average


def pixel_cross_entropy(
    logits: Float[Array, "b _h _w k"],
    labels: Int[Array, "b h w"],
    *,
    ignore: int = IGNORE,
) -> Float[Array, "b h w"]:
    """Cross entropy of every pixel, in float32; 0 where the label is `ignore`.

    Args:
        logits: at the labels' size; `vadapt.nn.resize.resize_bilinear` brings them there.
        labels: class numbers. One that is neither a class nor `ignore` gives NaN: what the data
            hold by mistake must not be learned from in silence.

    Raises:
        ShapeError: the logits have another size.
    """
    if logits.shape[1:3] != labels.shape[1:]:
        raise ShapeError(
            f"logits of {logits.shape[1:3]} pixels for labels of {labels.shape[1:]}; resize them, "
            "as with vadapt.nn.resize.resize_bilinear"
        )
    logits = logits.astype(jnp.float32)
    valid = labels != ignore
    wanted = jnp.where(valid, labels, 0).astype(jnp.int32)[..., None]
    known = (wanted >= 0) & (wanted < logits.shape[-1])
    classes = jnp.arange(logits.shape[-1]).reshape(1, 1, 1, -1)
    # Chosen by comparison: reading by a number makes XLA write all likelihoods, and its gradient
    # adds one number a pixel to as many zeros.
    shifted = logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    chosen = jnp.where(classes == wanted, shifted, 0.0).sum(axis=-1)
    likelihoods = chosen - jnp.log(jnp.exp(shifted).sum(axis=-1))
    likelihoods = jnp.where(known[..., 0], likelihoods, jnp.nan)
    return jnp.where(valid, -likelihoods, 0.0)


def cross_entropy(
    logits: Float[Array, "b _h _w k"],
    labels: Int[Array, "b h w"],
    *,
    ignore: int = IGNORE,
    class_weights: Float[Array, " k"] | None = None,
    pixel_weights: Float[Array, "b h w"] | None = None,
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
    return batch_average(losses.sum(), valid.sum())
