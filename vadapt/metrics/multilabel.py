"""Scores of several labels per image: average precision, precision and recall.

Scores and targets of all images are needed at once, [n, l] on the host. Targets are 1 (there), 0
(absent) or -1 (in doubt: in no ranking, and absent to precision and recall).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool, Float, Int, Num

from vadapt.errors import ConfigError

# Areas in pixels below which an object is small, and below which it is no large one (COCO's).
SMALL, LARGE = 32**2, 96**2


class Answers:
    """Scores, targets and areas of images batch by batch, kept in float32 on the host.

    Batches are those of `vadapt.data.stream.batches`, of one size, of which each process has its
    share of the rows.

    >>> answers = Answers()
    >>> answers.add(np.array([[2.0], [3.0], [1.0]]), np.array([[1], [0], [1]]))
    >>> average_precision(*answers.rows()[:2]).round(3).tolist()  # of 1/2 and 2/3
    [0.583]
    """

    def __init__(self) -> None:
        self._batches: list[np.ndarray] = []
        self._num_labels = 0

    def add(
        self,
        scores: Float[np.ndarray, "b l"],
        targets: Num[np.ndarray, "b l"],
        areas: Num[np.ndarray, "b l"] | None = None,
        valid: Bool[np.ndarray, " b"] | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            areas: pixels of each label's objects, 0 where it is absent; in all batches or in none.
            valid: False for rows that only fill the batch up.
        """
        counts = np.ones(len(scores)) if valid is None else valid
        parts = [counts[:, None], scores, targets, *([] if areas is None else [areas])]
        self._num_labels = scores.shape[1]
        self._batches.append(np.concatenate([np.asarray(x, np.float32) for x in parts], axis=1))

    def rows(self) -> tuple[Any, ...]:
        """Scores, targets and areas (or None) of all processes, [n, l] each, in their order.

        Raises:
            ConfigError: nothing was added.
        """
        rows = self._all()
        rows = rows[rows[:, 0] > 0, 1:]
        parts = np.split(rows, rows.shape[1] // self._num_labels, axis=1)
        return parts[0], parts[1].astype(np.int8), parts[2] if len(parts) > 2 else None

    def elements(self) -> Int[np.ndarray, " n"]:
        """The elements of the source that the images of `rows` are, by their numbers."""
        return np.flatnonzero(self._all()[:, 0] > 0)  # batches have them in order

    def _all(self) -> Float[np.ndarray, "m c"]:
        """Every row of all processes, those that only fill up too: valid, scores, targets, ..."""
        if not self._batches:
            raise ConfigError("no image was added: nothing to score")
        return all_rows(self._batches)


def all_rows(batches: Sequence[Float[np.ndarray, "b c"]]) -> Float[np.ndarray, "n c"]:
    """Rows of the batches of all processes, in the order of `data.stream.batches`."""
    mine = np.stack(batches)
    everyone = np.asarray(multihost_utils.process_allgather(mine)).reshape(-1, *mine.shape)
    # A batch is the rows of one process after those of another.
    return everyone.swapaxes(0, 1).reshape(-1, mine.shape[-1])


def average_precision(
    scores: Float[np.ndarray, "n l"],
    targets: Int[np.ndarray, "n l"],
    *,
    kept: Bool[np.ndarray, "n l"] | None = None,
    eleven_points: bool = False,
) -> Float[np.ndarray, " l"]:
    """Average precision of each label, in [0, 1]; 0 for one that is in no image.

    NaN for a label with a score that is NaN among what counts: it has no place in a ranking. The
    mean of the precision at every image that has it, images by descending score, equal ones in
    their order. Entries of -1 are left out of the ranking.

    Args:
        kept: False for other entries to leave out.
        eleven_points: the mean over recalls 0, 0.1, ... 1 of the best precision at that recall or
            more instead, as VOC 2007 has it.
    """
    counts = targets >= 0 if kept is None else kept & (targets >= 0)
    unknown = (np.isnan(scores) & counts).any(axis=0)
    order = np.argsort(-scores, axis=0, kind="stable")
    counts = np.take_along_axis(counts, order, 0)
    hits = np.take_along_axis(targets > 0, order, 0) & counts
    found, positives = hits.cumsum(0), hits.sum(0)
    precision = found / np.maximum(counts.cumsum(0), 1)
    if not eleven_points:
        return np.where(unknown, np.nan, (precision * hits).sum(0) / np.maximum(positives, 1))
    reached = [10 * found >= step * positives for step in range(11)]
    best = [np.where(there & hits, precision, 0).max(0, initial=0) for there in reached]
    return np.where(unknown, np.nan, np.mean(best, axis=0))


class Counts(NamedTuple):
    """Precision and recall, in [0, 1]: means over labels (c), and of all answers together (o).

    0 of 0 counts as 0, so that a label which is never predicted has no precision, and one that is
    in no image no recall. CF1 is the harmonic mean of the means, not a mean of labels' own.
    """

    CP: float
    CR: float
    CF1: float
    OP: float
    OR: float
    OF1: float


class Answered(NamedTuple):
    """Images by what was said of each label, int [l] each; in doubt counts as absent."""

    true_positives: Int[np.ndarray, " l"]
    false_positives: Int[np.ndarray, " l"]
    false_negatives: Int[np.ndarray, " l"]
    true_negatives: Int[np.ndarray, " l"]

    @property
    def precision(self) -> Float[np.ndarray, " l"]:
        """In [0, 1], of each label; 0 for one that is never predicted."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> Float[np.ndarray, " l"]:
        """In [0, 1], of each label; 0 for one that is in no image."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)


def answered(predicted: Bool[np.ndarray, "n l"], targets: Int[np.ndarray, "n l"]) -> Answered:
    """Count, label by label, the images where a choice of labels is right and where it is not."""
    there = targets > 0
    pairs = ((predicted, there), (predicted, ~there), (~predicted, there), (~predicted, ~there))
    return Answered(*((said & true).sum(0) for said, true in pairs))


def precision_recall(predicted: Bool[np.ndarray, "n l"], targets: Int[np.ndarray, "n l"]) -> Counts:
    """Precision, recall and F1 of a choice of labels for each image."""
    each = answered(predicted, targets)
    class_precision, class_recall = float(each.precision.mean()), float(each.recall.mean())
    right = each.true_positives.sum()
    precision = float(_ratio(right, predicted.sum()))
    recall = float(_ratio(right, (targets > 0).sum()))
    return Counts(
        class_precision,
        class_recall,
        _harmonic(class_precision, class_recall),
        precision,
        recall,
        _harmonic(precision, recall),
    )


def choose(
    scores: Float[np.ndarray, "n l"],
    *,
    threshold: float | None = None,
    top: int | None = None,
) -> Bool[np.ndarray, "n l"]:
    """The labels whose score reaches the threshold, and that are among the `top` of the image.

    Of equal scores the first labels are taken, one that is NaN never. None for either sets no such
    condition.
    """
    chosen = ~np.isnan(scores) if threshold is None else scores >= threshold
    if top is None:
        return chosen
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.argsort(order, axis=1)
    return chosen & (ranks < top)


def label_scores(
    scores: Float[np.ndarray, "n l"],
    targets: Int[np.ndarray, "n l"],
    areas: Num[np.ndarray, "n l"] | None = None,
    *,
    threshold: float | int = 0.5,
    top: int = 3,
) -> dict[str, float]:
    """All scores in percent, by name.

    `mAP` (all labels count, those in no image with 0); `mAP_voc07` (eleven points); `CP`, `CR`,
    `CF1`, `OP`, `OR`, `OF1` at the threshold; the same with `_top3` for the best three labels of
    each image, whatever their scores, as most papers have it; with `_top3_thr` for those of them
    that reach the threshold, as GKGNet's released code has it; with areas `mAP_s`, `mAP_m` and
    `mAP_l`, which rank images with objects of one size among those without.

    Args:
        areas: pixels of each label's objects in the image, 0 where it is absent.
    """
    results = {
        "mAP": average_precision(scores, targets).mean(),
        "mAP_voc07": average_precision(scores, targets, eleven_points=True).mean(),
    }
    if areas is not None:
        for name, low, high in (("s", 0, SMALL), ("m", SMALL, LARGE), ("l", LARGE, np.inf)):
            kept = (areas == 0) | ((areas >= low) & (areas < high))
            results[f"mAP_{name}"] = average_precision(scores, targets, kept=kept).mean()
    choices = {
        "": choose(scores, threshold=threshold),
        f"_top{top}": choose(scores, top=top),
        f"_top{top}_thr": choose(scores, threshold=threshold, top=top),
    }
    for suffix, chosen in choices.items():
        counted = precision_recall(chosen, targets)._asdict()
        results |= {f"{name}{suffix}": value for name, value in counted.items()}
    return {name: 100 * float(value) for name, value in results.items()}


def _ratio(part: Any, whole: Any) -> Any:
    return part / np.maximum(whole, 1)


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def top_accuracy(
    scores: Float[np.ndarray, "n l"], targets: Int[np.ndarray, "n l"], top: int = 1
) -> float:
    """Share in percent of the images whose one label is among their `top` best scores."""
    return 100 * float((choose(scores, top=top) & (targets > 0)).any(1).mean())
