"""A closer look at the evaluation of labels: scores of labels and images, the worst drawn."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from vadapt.charts import RIGHT, WRONG, text_panel
from vadapt.data import pipeline
from vadapt.data.sources import name_of
from vadapt.drawing import INK, QUIET, Colour, contact_sheet, fit
from vadapt.metrics.multilabel import Answers, answered, average_precision
from vadapt.metrics.segmentation import accuracy_per_class
from vadapt.tasks import image_labels
from vadapt.training.report import MOST_SHOWN, Images, Row, caption, sheet_cell, sort_images

SCORE = "loss"
_BEST = 3  # labels that are shown where fewer are predicted
_LEGEND = (("right", RIGHT), ("missed, or predicted wrongly", WRONG), ("not predicted", QUIET))

Lines = list[tuple[str, Colour]]


def label_rows(
    classes: Sequence[str],
    probabilities: Float[np.ndarray, "n l"],
    targets: Int[np.ndarray, "n l"],
    chosen: Bool[np.ndarray, "n l"],
) -> list[Row]:
    """Average precision, precision and recall of each label in percent, and counts of images.

    The latter, but for `in_doubt`, take a label in doubt for absent, as `label_scores` does. A
    label in no image has an average precision of 0 in the mean, and none here.

    Args:
        chosen: the labels that are predicted.
    """
    precision = 100 * average_precision(probabilities, targets)
    counts, there = answered(chosen, targets), (targets > 0).sum(axis=0)
    numbers = {**counts._asdict(), "in_doubt": (targets < 0).sum(axis=0)}
    return [
        {
            "class": name,
            "AP": float(precision[k]) if there[k] else float("nan"),
            "precision": 100 * float(counts.precision[k]),
            "recall": 100 * float(counts.recall[k]),
            "images": int(there[k]),
            **{key: int(array[k]) for key, array in numbers.items()},
        }
        for k, name in enumerate(classes)
    ]


def class_rows(classes: Sequence[str], confusion: Int[np.ndarray, "k p"]) -> list[Row]:
    """The share of each class's images that is found, in percent, and counts of images.

    NaN for a class without images.
    """
    accuracy = 100 * accuracy_per_class(confusion)
    there, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return [
        {
            "class": name,
            "accuracy": float(accuracy[k]),
            "images": int(there[k]),
            "predicted": int(predicted[k]),
        }
        for k, name in enumerate(classes)
    ]


def class_confusion(
    logits: Float[np.ndarray, "n k"], targets: Int[np.ndarray, "n k"]
) -> Int[np.ndarray, "k k+1"]:
    """Images by their one label and by the best one, as `metrics.segmentation.confusion_matrix`.

    Images without a label do not count; logits of which one is NaN are no class.
    """
    number = logits.shape[1]
    best = np.where(np.isnan(logits).any(axis=1), number, logits.argmax(axis=1))
    labeled = (targets > 0).any(axis=1)
    counts = np.zeros((number, number + 1), np.int64)
    np.add.at(counts, (targets.argmax(axis=1)[labeled], best[labeled]), 1)
    return counts


def label_losses(
    logits: Float[np.ndarray, "n l"], targets: Int[np.ndarray, "n l"]
) -> Float[np.ndarray, " n"]:
    """Mean over an image's labels of the binary cross entropy; those in doubt are left out.

    NaN for an image of which no label is known; infinite where a logit is NaN.
    """
    x, known = logits.astype(np.float64), targets >= 0
    with np.errstate(invalid="ignore"):  # of NaN
        each = np.where(known, np.logaddexp(0, np.where(targets > 0, -x, x)), 0.0)
    number = known.sum(axis=1)
    loss = np.nan_to_num(each.sum(axis=1), nan=np.inf) / np.maximum(number, 1)
    return np.where(number > 0, loss, np.nan)


def class_losses(
    logits: Float[np.ndarray, "n k"], targets: Int[np.ndarray, "n k"]
) -> Float[np.ndarray, " n"]:
    """The cross entropy of each image's one label; NaN for an image that has none.

    Infinite where a logit is NaN.
    """
    x = logits.astype(np.float64)
    own = np.take_along_axis(x, targets.argmax(axis=1)[:, None], axis=1)[:, 0]
    with np.errstate(invalid="ignore"):  # of NaN
        loss = np.logaddexp.reduce(x, axis=1) - own
    return np.where((targets > 0).any(axis=1), np.nan_to_num(loss, nan=np.inf), np.nan)


def label_images(
    task: Any, data: Any, answers: Answers, losses: Float[np.ndarray, " n"], threshold: float
) -> Images:
    """All images, the largest loss first; every process calls it.

    Args:
        threshold: the probability from which a label is predicted; above 1: the best one is.
    """
    logits, targets, _ = answers.rows()
    order, elements = sort_images(answers.elements(), losses, lowest_first=False)
    logits, targets = logits[order[:MOST_SHOWN]], targets[order[:MOST_SHOWN]]
    source = pipeline.make_source(data, image_labels.FIELDS, classes=task.classes)

    def draw(places: Sequence[int]) -> UInt8[np.ndarray, "h w 3"]:
        rows, titles, cell = [], [], sheet_cell(len(places))
        for place in places:
            probabilities = task.probabilities(logits[place])
            lines = text_lines(task.classes, probabilities, targets[place], threshold)
            panels = [text_panel(each, cell, cell) for each in lines]
            rows.append([fit(source[int(elements[place])]["image"], cell), *panels])
            titles.append(
                caption(images.name(int(elements[place])), f"loss {images.scores[place]:.2f}")
            )
        columns = ["image", "truth", "prediction"]
        return contact_sheet(rows, columns, titles, cell, legend=_LEGEND)

    images = Images(
        score=SCORE,
        elements=elements,
        scores=np.asarray(losses, np.float64)[order],
        name=functools.partial(name_of, source),
        draw=draw,
    )
    return images


def text_lines(
    classes: Sequence[str],
    probabilities: Float[np.ndarray, " l"],
    targets: Int[np.ndarray, " l"],
    threshold: float,
) -> tuple[Lines, Lines]:
    """Lines of true and of predicted labels, with probabilities, by color right or wrong.

    True labels that are missed are red, and so are predicted ones that are not there; blue are
    those that are. Where fewer than three are predicted, the best of the others follow in gray.
    """
    values = np.nan_to_num(probabilities, nan=-1.0)
    order = np.argsort(-values, kind="stable")
    said = {int(k) for k in order if values[k] >= threshold}
    if threshold > 1:
        said = {int(order[0])} if values[order[0]] >= 0 else set()

    def line(k: int) -> str:
        return f"{classes[k]}  {probabilities[k]:.0%}"

    there = sorted(np.flatnonzero(targets > 0).tolist(), key=lambda k: values[k])
    truth = [(line(k), RIGHT if k in said else WRONG) for k in there]
    truth += [(f"{classes[k]}  in doubt", QUIET) for k in np.flatnonzero(targets < 0).tolist()]
    ranked = [int(k) for k in order]
    right = {k: RIGHT if targets[k] > 0 else QUIET if targets[k] < 0 else WRONG for k in said}
    found = [(line(k), right[k]) for k in ranked if k in said]
    found += [(line(k), QUIET) for k in ranked if k not in said][: max(0, _BEST - len(found))]
    return truth or [("none", INK)], found
