"""Losses of several labels an image, each there (1), absent (0) or in doubt (-1, which is no term).

Sigmoids and logarithms are in float32, whatever the logits are.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

Reduction = Literal["none", "mean", "sum", "batch"]


def asymmetric_loss(
    logits: Float[Array, "b l"],
    targets: Integer[Array, "b l"],
    *,
    gamma_positive: float | int = 0.0,
    gamma_negative: float | int = 4.0,
    clip: float | int = 0.05,
    eps: float = 1e-8,
    weights: Float[Array, " b"] | None = None,
    reduction: Reduction = "batch",
) -> Float[Array, "*b"]:
    """Cross entropy that cares less for what is right already, and for easy negatives least.

    With p the probability of the truth, shifted by `clip` for absent labels (and at most 1), a term
    is -log(max(p, eps)) (1 - p)^gamma. Gradients go through both factors.

    Args:
        gamma_positive: focus on labels that are there; `gamma_negative` on those that are not.
        clip: an absent label that is given a probability up to it costs nothing.
        weights: a factor of each image's terms.
        reduction: "none" [b, l], "mean" over all b * l, "sum", or "batch", the sum over b.

    Source: Asymmetric Loss, arXiv:2009.14119; GKGNet, arXiv:2308.14378, takes gammas 0 and 2.
    """
    logits = logits.astype(jnp.float32)
    floor = math.log(eps)
    there = jnp.maximum(jax.nn.log_sigmoid(logits), floor)
    there = -there * _power(jax.nn.sigmoid(-logits), gamma_positive)
    wrong = jax.nn.relu(jax.nn.sigmoid(logits) - clip)
    # log(1 - wrong), from the logits where they alone keep its digits.
    right = jnp.log1p(-wrong) if clip else jax.nn.log_sigmoid(-logits)
    absent = -jnp.maximum(right, floor) * _power(wrong, gamma_negative)
    return _reduce(jnp.where(targets > 0, there, absent), targets, weights, reduction)


def smoothed_cross_entropy(
    logits: Float[Array, "b l"],
    targets: Integer[Array, "b l"],
    *,
    smoothing: float | int = 0.1,
    weights: Float[Array, " b"] | None = None,
    reduction: Reduction = "batch",
) -> Float[Array, "*b"]:
    """Cross entropy of sigmoids with 1 - smoothing for labels that are there, smoothing for others.

    Args:
        weights, reduction: see `asymmetric_loss`.
    """
    logits = logits.astype(jnp.float32)
    wanted = jnp.where(targets > 0, 1.0 - smoothing, smoothing)
    return _reduce(jax.nn.softplus(logits) - wanted * logits, targets, weights, reduction)


def label_losses(
    logits: Float[Array, "b l"],
    targets: Integer[Array, "b l"],
    *,
    smoothing: float | int = 0.1,
    gamma_positive: float | int = 0.0,
    gamma_negative: float | int = 2.0,
    clip: float | int = 0.05,
    asymmetric_weight: float | int = 10.0,
) -> dict[str, Float[Array, ""]]:
    """GKGNet's two terms, whose sum it trains: sums over labels and images over the batch's size.

    Source: GKGNet, arXiv:2308.14378, as released (the paper does not state the weight).
    """
    asymmetric = asymmetric_loss(
        logits, targets, gamma_positive=gamma_positive, gamma_negative=gamma_negative, clip=clip
    )
    return {
        "loss_bce": smoothed_cross_entropy(logits, targets, smoothing=smoothing),
        "loss_asl": asymmetric_weight * asymmetric,
    }


def _power(x: Array, gamma: float | int) -> Array:
    """x^gamma of 0 <= x <= 1, whose slope is 0 at x = 0 where it would be infinite."""
    if not gamma:
        return jnp.ones_like(x)
    positive = x > 0
    return jnp.where(positive, jnp.where(positive, x, 1.0) ** gamma, 0.0)


def _reduce(losses: Array, targets: Array, weights: Array | None, reduction: Reduction) -> Array:
    losses = jnp.where(targets < 0, 0.0, losses)
    if weights is not None:
        losses = losses * weights.astype(jnp.float32)[:, None]
    if reduction == "none":
        return losses
    if reduction == "mean":
        return losses.mean()
    return losses.sum() / (losses.shape[0] if reduction == "batch" else 1)
