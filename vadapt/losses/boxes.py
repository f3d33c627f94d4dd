"""Losses of box detectors, element by element, in float32; heads weigh and average them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vadapt.boxes.geometry import EPSILON, giou, iou


def focal(
    logits: Float[Array, "*b k"],
    labels: Int[Array, "*b"],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Array, "*b k"]:
    """Cross entropy of each class's sigmoid, small for what is classified well.

    Args:
        labels: classes; any other number is background.

    Source: arXiv:1708.02002.
    """
    logits = logits.astype(jnp.float32)
    right = _one_hot(labels, logits.shape[-1])
    missed = jnp.where(right, jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits))
    weight = jnp.where(right, alpha, 1 - alpha)
    entropy = jax.nn.softplus(jnp.where(right, -logits, logits))
    return weight * missed**gamma * entropy


def quality_focal(
    logits: Float[Array, "*b k"],
    labels: Int[Array, "*b"],
    quality: Float[Array, "*b"],
    *,
    beta: float = 2.0,
) -> Float[Array, "*b k"]:
    """Cross entropy of each class's sigmoid with a quality in place of 1, for the label's class.

    Args:
        labels: classes; any other number is background.
        quality: of the box, 0 to 1.

    Source: arXiv:2006.04388, equation 2.
    """
    logits = logits.astype(jnp.float32)
    right = _one_hot(labels, logits.shape[-1])
    target = jnp.where(right, quality.astype(jnp.float32)[..., None], 0.0)
    entropy = jax.nn.softplus(logits) - logits * target
    return jnp.abs(target - jax.nn.sigmoid(logits)) ** beta * entropy


def distribution_focal(
    logits: Float[Array, "*b n"], targets: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """Cross entropy of a distribution over 0, 1, ... with the two whole numbers around a target.

    Args:
        targets: from 0 to below the last number.

    Source: arXiv:2006.04388, equation 6.
    """
    logs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    numbers = jnp.arange(logits.shape[-1], dtype=jnp.float32)
    numbers = numbers.reshape((1,) * targets.ndim + (-1,))
    # 1 at the target, 0 from a distance of 1 on: what is left of the way to either neighbor.
    shares = jnp.maximum(1.0 - jnp.abs(numbers - targets[..., None]), 0.0)
    return -(jax.lax.stop_gradient(shares) * logs).sum(axis=-1)


def giou_loss(found: Float[Array, "*b 4"], targets: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """1 minus the generalized IoU."""
    return 1.0 - giou(found.astype(jnp.float32), targets)


def iou_loss(
    found: Float[Array, "*b 4"], targets: Float[Array, "*b 4"], *, epsilon: float = EPSILON
) -> Float[Array, "*b"]:
    """Minus the logarithm of the IoU, which counts as `epsilon` at least.

    Source: UnitBox, arXiv:1608.01471.
    """
    return -jnp.log(jnp.maximum(iou(found.astype(jnp.float32), targets), epsilon))


def l1(found: Float[Array, "*b"], targets: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Absolute differences."""
    return jnp.abs(found.astype(jnp.float32) - targets)


def smooth_l1(
    found: Float[Array, "*b"], targets: Float[Array, "*b"], *, beta: float = 1.0
) -> Float[Array, "*b"]:
    """Absolute differences minus `beta` / 2; below `beta`, squares of them that meet these."""
    distance = l1(found, targets)
    return jnp.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)


def binary_cross_entropy(
    logits: Float[Array, "*b"], targets: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """Cross entropy of a sigmoid with a share, 0 to 1."""
    logits = logits.astype(jnp.float32)
    return jax.nn.softplus(logits) - logits * targets


def _one_hot(labels: Array, num_classes: int) -> Array:
    classes = jnp.arange(num_classes).reshape((1,) * labels.ndim + (-1,))
    return labels[..., None] == classes
