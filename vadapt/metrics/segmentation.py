"""Segmentation scores from a streaming confusion matrix."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

IGNORE = 255


def confusion_matrix(
    prediction: Int[Array, "*n"], target: Int[Array, "*n"], num_classes: int
) -> Int[Array, "k k"]:
    """Counts of (target, prediction) pairs; sums over batches, devices and hosts by addition.

    Args:
        target: class ids; 255 (and anything else outside the classes) is ignored.
    """
    valid = (target >= 0) & (target < num_classes)
    pairs = jnp.where(valid, target * num_classes + prediction, num_classes**2)
    counts = jnp.bincount(pairs.reshape(-1), length=num_classes**2 + 1)[:-1]
    return counts.reshape(num_classes, num_classes)


def iou_per_class(confusion: Int[np.ndarray, "k k"]) -> Float[np.ndarray, " k"]:
    """Intersection over union of each class in [0, 1]; NaN where target and prediction lack it."""
    confusion = np.asarray(confusion, np.float64)
    intersection = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - intersection
    return np.divide(intersection, union, out=np.full_like(union, np.nan), where=union > 0)


def mean_iou(confusion: Int[np.ndarray, "k k"]) -> float:
    """Mean of the classes' IoU in [0, 1]; classes absent from both sides are left out.

    >>> round(mean_iou(np.array([[3, 1], [0, 4]])), 3)
    0.775
    """
    return float(np.nanmean(iou_per_class(confusion)))
