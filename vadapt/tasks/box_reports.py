"""A closer look at the evaluation of boxes: scores of classes and images, the worst drawn."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from vadapt.data.sources import name_of
from vadapt.drawing import contact_sheet, draw_boxes, fit
from vadapt.metrics.detection import (
    Found,
    Rules,
    Truth,
    box_overlaps,
    class_precision,
    detection_curves,
)
from vadapt.training.report import MOST_SHOWN, Images, Row, caption, sheet_cell, sort_images

SCORE = "F1"
_OVERLAP = 0.5  # IoU from which on an object of an image counts as found


def class_rows(classes: Sequence[str], found: Found, truth: Truth, rules: Rules) -> list[Row]:
    """Average precision of each class in percent, and counts of objects and detections.

    NaN for a class without objects that count.
    """
    curves = detection_curves(found, truth, len(classes), rules)
    everything = list(rules.areas).index("all")
    first = 100 * curves.precision[0, ..., everything].mean(axis=0)  # the mildest threshold
    recall = 100 * curves.recall[..., everything, -1].mean(axis=0)
    counts = ~(truth.crowds | truth.ignored)
    there = np.bincount(truth.classes[counts], minlength=len(classes))
    predicted = np.bincount(found.classes, minlength=len(classes))
    precision = 100 * class_precision(curves, rules)
    return [
        {
            "class": name,
            "AP": float(precision[k]),
            f"AP{round(100 * rules.ious[0])}": float(first[k]),
            "recall": float(recall[k]),
            "objects": int(there[k]),
            "found": int(predicted[k]),
        }
        for k, name in enumerate(classes)
    ]


def image_scores(
    found: Found, truth: Truth, images: Int[np.ndarray, " n"], least: float
) -> Float[np.ndarray, " n"]:
    """The F1 of each image's detections from a score on, in percent; NaN where nothing is there.

    A detection is right if it takes an object of its class that overlaps it by half and that none
    of a better score took. Ignored objects, and what overlaps them by half, count for nothing.
    """
    found = found.rows(found.scores >= least)
    scores = np.full(len(images), np.nan)
    for place, image in enumerate(images.tolist()):
        mine, there = found.rows(found.images == image), truth.rows(truth.images == image)
        mine = mine.rows(np.argsort(-mine.scores, kind="stable"))
        ignored = there.crowds | there.ignored
        overlaps = box_overlaps(mine.boxes_xyxy, there.boxes_xyxy, there.crowds)
        overlaps = np.where(mine.classes[:, None] == there.classes[None], overlaps, 0.0)
        free, right, wrong = ~ignored, 0, 0
        for row in overlaps:
            best = int(np.argmax(np.where(free, row, 0.0))) if len(row) else 0
            if len(row) and free[best] and row[best] >= _OVERLAP:
                free[best], right = False, right + 1
            elif not (row[ignored] >= _OVERLAP).any():
                wrong += 1
        missed = int(free.sum())
        if right + wrong + missed:
            scores[place] = 100 * 2 * right / (2 * right + wrong + missed)
    return scores


def worst_images(task: Any, scored: Any) -> Images | None:
    """The images of a test set, the worst first; None for a set of tiles."""
    source = scored.source
    if len(source) != len(np.unique(source.pictures)):
        return None
    numbers = np.arange(len(source), dtype=np.int32)
    scores = image_scores(scored.found, scored.truth, numbers, task.config.eval.shown)
    order, elements = sort_images(numbers, scores, lowest_first=True)
    images = Images(
        score=SCORE,
        elements=elements,
        scores=scores[order],
        name=functools.partial(name_of, source),
        draw=lambda places: _draw(task, scored, images, places),
    )
    return images


def _draw(
    task: Any, scored: Any, images: Images, places: Sequence[int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Rows of an image with its objects, and with what was found."""
    found = scored.found.rows(scored.found.scores >= task.config.eval.shown)
    cell, palette = sheet_cell(len(places)), task.palette
    rows, captions = [], []
    for place in places[:MOST_SHOWN]:
        element = int(images.elements[place])
        image = scored.source[element]["image"]
        row = []
        for boxes in (scored.truth, found):
            mine = boxes.rows(boxes.images == element)
            colors = [tuple(color) for color in palette[mine.classes].tolist()]
            row.append(fit(draw_boxes(image, mine.boxes_xyxy, colors), cell))
        rows.append(row)
        captions.append(caption(images.name(element), f"{SCORE} {images.scores[place]:.1f}"))
    legend = [(name, tuple(palette[k].tolist())) for k, name in enumerate(task.classes)]
    return contact_sheet(rows, ["truth", "found"], captions, cell, legend=legend[:24])
