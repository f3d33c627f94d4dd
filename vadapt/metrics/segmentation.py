"""Segmentation scores from a streaming confusion matrix."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, UInt32

from vadapt.data.label_maps import IGNORE
from vadapt.errors import ConfigError, nearest


class Confusion(NamedTuple):
    """Counts of (target, prediction) pairs on the device, exact to 2^64: low + high * 2^32.

    32 bits alone overflow within one training set of Cityscapes. The last column is that of
    `confusion_matrix`: predictions that are none of the classes.

    >>> state = Confusion.empty(2)
    >>> state = state.update(jnp.array([[0, 1, 1]]), jnp.array([[0, 1, 255]]))
    >>> state.counts().tolist()
    [[1, 0, 0], [0, 1, 0]]
    """

    low: UInt32[Array, "k k+1"]
    high: UInt32[Array, "k k+1"]

    @classmethod
    def empty(cls, num_classes: int) -> Confusion:
        """Nothing counted yet."""
        zero = jnp.zeros((num_classes, num_classes + 1), jnp.uint32)
        return cls(zero, zero)

    def update(
        self,
        prediction: Integer[Array, "b *n"],
        target: Integer[Array, "b *n"],
        valid: Bool[Array, " b"] | None = None,
    ) -> Confusion:
        """Adds a batch of fewer than 2^31 pixels; pure, to be jitted with what predicts.

        Under a sharded batch every device counts its part, and the counts are summed.

        Args:
            prediction: class ids; one that is none of the classes is a miss.
            target: class ids; what lies outside of the classes (255) is ignored.
            valid: False for rows that only fill a batch up; they do not count.
        """
        if valid is not None:
            rows = valid.reshape(-1, *(1,) * (target.ndim - 1))
            target = jnp.where(rows, target.astype(jnp.int32), IGNORE)
        counts = confusion_matrix(prediction, target, self.low.shape[0]).astype(jnp.uint32)
        low = self.low + counts
        return Confusion(low, self.high + (low < counts).astype(jnp.uint32))

    def counts(self) -> Int[np.ndarray, "k k+1"]:
        """The matrix on the host, int64."""
        low, high = (np.asarray(part).astype(np.int64) for part in self)
        return low + (high << 32)


def confusion_matrix(
    prediction: Integer[Array, "*n"], target: Integer[Array, "*n"], num_classes: int
) -> Int[Array, "k k+1"]:
    """Counts of (target, prediction) pairs; sums over batches, devices and hosts by addition.

    The last column counts predictions that are none of the classes: pixels of the target's class
    that no class has found.

    Args:
        target: class ids; 255 (and anything else outside the classes) is ignored.
    """
    # Labels come in 8 bits, which would overflow.
    prediction, target = prediction.astype(jnp.int32), target.astype(jnp.int32)
    valid = (target >= 0) & (target < num_classes)
    # Left as it came it would count for another pair of classes, or for none.
    named = (prediction >= 0) & (prediction < num_classes)
    prediction = jnp.where(named, prediction, num_classes)
    columns = num_classes + 1
    pairs = jnp.where(valid, target * columns + prediction, num_classes * columns)
    counts = jnp.bincount(pairs.reshape(-1), length=num_classes * columns + 1)[:-1]
    return counts.reshape(num_classes, columns)


def image_mean_iou(
    prediction: Integer[Array, "b *n"], target: Integer[Array, "b *n"], num_classes: int
) -> Float[Array, " b"]:
    """Mean IoU of each image alone, in [0, 1], over the classes that it has or is said to have.

    NaN for an image without a labeled pixel. Pixels that are ignored count for nothing.
    """
    counts = jax.vmap(functools.partial(confusion_matrix, num_classes=num_classes))
    matrices = counts(prediction, target)
    found = jnp.diagonal(matrices, axis1=-2, axis2=-1)
    union = matrices[:, :, :num_classes].sum(-2) + matrices.sum(-1) - found
    each = found / jnp.maximum(union, 1)  # 0 for a class that is nowhere
    number = (union > 0).sum(-1).astype(jnp.float32)
    return jnp.where(number > 0, each.sum(-1) / jnp.maximum(number, 1), jnp.nan)


def best_class(scores: Float[Array, "*n k"]) -> Int[Array, "*n"]:
    """The class of the highest score, -1 (none of them) where any score is NaN."""
    # argmax takes NaN for the highest: broken scores would all be hits of one class.
    return jnp.where(jnp.isnan(scores).any(axis=-1), -1, scores.argmax(axis=-1))


def iou_per_class(confusion: Int[np.ndarray, "k p"]) -> Float[np.ndarray, " k"]:
    """Intersection over union of each class in [0, 1]; NaN where target and prediction lack it.

    Args:
        confusion: a row a target's class; a column a predicted class, and one more if there is one
            for predictions that are none of them.
    """
    confusion = np.asarray(confusion, np.float64)
    intersection = np.diag(confusion)
    union = confusion[:, : len(confusion)].sum(0) + confusion.sum(1) - intersection
    return np.divide(intersection, union, out=np.full_like(union, np.nan), where=union > 0)


def mean_iou(confusion: Int[np.ndarray, "k p"]) -> float:
    """Mean of the classes' IoU in [0, 1]; classes absent from both sides are left out.

    NaN if all are.

    >>> round(mean_iou(np.array([[3, 1], [0, 4]])), 3)
    0.775
    """
    return _mean_of_present(iou_per_class(confusion))


def mean_accuracy(confusion: Int[np.ndarray, "k p"]) -> float:
    """Mean over the classes of the share of their pixels found, in [0, 1]; absent ones left out."""
    return _mean_of_present(accuracy_per_class(confusion))


def accuracy_per_class(confusion: Int[np.ndarray, "k p"]) -> Float[np.ndarray, " k"]:
    """Share of each class's pixels found, in [0, 1]; NaN for a class that no pixel has."""
    confusion = np.asarray(confusion, np.float64)
    total = confusion.sum(1)
    return np.divide(np.diag(confusion), total, out=np.full_like(total, np.nan), where=total > 0)


def pixel_accuracy(confusion: Int[np.ndarray, "k p"]) -> float:
    """Share of the labelled pixels found, in [0, 1]; NaN where no pixel is labelled."""
    confusion = np.asarray(confusion, np.float64)
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")


def domain_scores(
    confusions: Mapping[str, Int[np.ndarray, "k p"]],
    mean_over: Sequence[str] | None = None,
    decimals: int | None = None,
) -> dict[str, float]:
    """Scores in percent of several data sets and their plain means: "bdd/miou", "mean/miou", ...

    `miou`, `macc` (mean class accuracy) and `aacc` (share of all pixels), each over its own data
    set's pixels.

    Args:
        confusions: of each data set, under the name that its scores get.
        mean_over: the data sets that the mean is taken over; by default all.
        decimals: rounds each data set's scores before their mean, as published tables do (2).

    Raises:
        ConfigError: `mean_over` names a data set that is not there.
    """
    names = list(confusions if mean_over is None else mean_over)
    for name in names:
        if name not in confusions:
            raise ConfigError(f"no scores of data set {name!r}; {nearest(name, confusions)}")
    scores: dict[str, float] = {}
    for metric, measure in _METRICS.items():
        of = {name: 100 * measure(matrix) for name, matrix in confusions.items()}
        if decimals is not None:
            of = {name: round(value, decimals) for name, value in of.items()}
        scores |= {f"{name}/{metric}": value for name, value in of.items()}
        if names:
            scores[f"mean/{metric}"] = float(np.mean([of[name] for name in names]))
    return scores


def _mean_of_present(values: Float[np.ndarray, " k"]) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


_METRICS = {"miou": mean_iou, "macc": mean_accuracy, "aacc": pixel_accuracy}
