"""A closer look at a segmentation's evaluation: scores of classes and images, the worst drawn."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8

from vadapt.data import pipeline
from vadapt.data.kinds import Batch
from vadapt.data.numbered import ELEMENT
from vadapt.data.sources import name_of
from vadapt.drawing import colour_mask, contact_sheet, fit
from vadapt.metrics.gathering import of_all_processes
from vadapt.metrics.segmentation import accuracy_per_class, image_mean_iou, iou_per_class
from vadapt.tasks import labelled
from vadapt.training.report import Images, Row, caption, sheet_cell, sort_images

SCORE = "mIoU"
_LEGEND = 40  # classes whose colors are explained


def class_rows(
    classes: Sequence[str], confusion: Int[np.ndarray, "k p"], counted: str = "pixels"
) -> list[Row]:
    """IoU and accuracy in percent of each class, and its pixels in the labels and as predicted.

    NaN for the IoU of a class that neither has, and for the accuracy of one without labels.

    Args:
        counted: the column of what is labeled.
    """
    iou, accuracy = 100 * iou_per_class(confusion), 100 * accuracy_per_class(confusion)
    labeled, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    return [
        {
            "class": name,
            "IoU": float(iou[k]),
            "accuracy": float(accuracy[k]),
            counted: int(labeled[k]),
            "predicted": int(predicted[k]),
        }
        for k, name in enumerate(classes)
    ]


class ImageScores:
    """The mean IoU of every image of a test set, each alone; nothing else is kept of them.

    It is that of the classes which are in its labels or predicted, over its labeled pixels.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes
        self._elements: list[np.ndarray] = []
        # On the device: to fetch them would wait for each batch.
        self._scores: list[Any] = []

    def add(self, found: Any, batch: Batch) -> None:
        """Takes the classes [b, h, w] that were found in a batch of `evaluation_batches`."""
        self._scores.append(_image_scores(found, batch["mask"], self.num_classes))
        self._elements.append(np.where(batch["valid"], batch[ELEMENT], -1))

    def images(self, task: Any, model: Any, data: Any) -> Images:
        """All images of all processes, the worst first; every process calls it."""
        scores = np.concatenate([np.asarray(x) for x in self._scores] or [np.zeros(0, np.float32)])
        elements = np.concatenate(self._elements or [np.zeros(0, np.int32)]).astype(np.int32)
        counts = elements >= 0
        elements, scores = of_all_processes(elements[counts]), of_all_processes(scores[counts])
        order, elements = sort_images(elements, scores, lowest_first=True)
        source = pipeline.make_source(data, labelled.READS)
        images = Images(
            score=SCORE,
            elements=elements,
            scores=100 * scores[order].astype(np.float64),
            name=functools.partial(name_of, source),
            draw=lambda places: draw_worst(task, model, data, source, images, places),
        )
        return images


def draw_worst(
    task: Any, model: Any, data: Any, source: Any, images: Images, places: Sequence[int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Rows of image, labels and prediction: they are read and predicted again."""
    chosen = [int(images.elements[place]) for place in places]
    cell, palette = sheet_cell(len(chosen)), task.palette
    cells: dict[int, list[np.ndarray]] = {}
    there: set[int] = set()
    # In batches as before, so that what has been compiled is used again.
    batches = pipeline.evaluation_batches(
        data, labelled.evaluation_feed(data), source, task.config.eval.batch, only=chosen
    )
    for batch in batches:
        found = task.predict(model, batch["image"], batch["mask"].shape[1:])
        for i in np.flatnonzero(batch["valid"]):
            masks = (batch["mask"][i], found[i])
            there |= {int(k) for mask in masks for k in np.unique(mask)}
            pictures = (batch["image"][i], *(colour_mask(mask, palette) for mask in masks))
            cells[int(batch[ELEMENT][i])] = [fit(picture, cell) for picture in pictures]
    captions = {
        element: caption(images.name(element), f"{SCORE} {images.scores[place]:.1f}")
        for element, place in zip(chosen, places, strict=True)
        if element in cells
    }
    legend = [
        (name, tuple(palette[k].tolist())) for k, name in enumerate(task.classes) if k in there
    ]
    shown = legend[:_LEGEND] + [("...", (255, 255, 255))] * (len(legend) > _LEGEND)
    titles = ["image", "truth", "prediction"]
    rows = [cells[element] for element in captions]
    return contact_sheet(rows, titles, [*captions.values()], cell, legend=shown)


@functools.partial(jax.jit, static_argnums=2)
def _image_scores(found: Any, mask: Any, num_classes: int) -> Any:
    return image_mean_iou(found, mask, num_classes)
