"""Retrieval: a classifier's features, scored by the images that are nearest to each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

from vadapt.charts import RIGHT, WRONG
from vadapt.data import pipeline
from vadapt.data.sources import name_of
from vadapt.drawing import contact_sheet, fit
from vadapt.metrics.retrieval import nearest_others, recalls
from vadapt.system import System
from vadapt.tasks import image_features, image_labels
from vadapt.tasks.classification import ClassificationTask
from vadapt.tasks.settings import RETRIEVAL_FIELDS
from vadapt.training.report import MOST_SHOWN, Images, Report, caption, sheet_cell, sort_images

KS = (1, 2, 4, 8)
_EDGE = 4  # pixels of a frame, for 100 of the image
_LEGEND = (("of the query's class", RIGHT), ("of another", WRONG))
_MOST_DRAWN = 64  # images of a batch that pictures choose from


class RetrievalTask(ClassificationTask):
    """As `ClassificationTask`, scored by whether the nearest images show the same class.

    Test sets have classes of their own, such as the other half of them (`class_half`), which no
    training image is of: every image of a set is a query among the set's others. What is compared
    is `System.embed`, by its cosine.
    """

    settings = RETRIEVAL_FIELDS

    def evaluate(self, model: System, on: str = "test") -> dict[str, float]:
        """Recall at 1, 2, 4 and 8 of every test set in percent: "test/recall@1" and so on."""
        scores = {}
        for name, data in pipeline.evaluation_sets(self.config, on).items():
            source = pipeline.make_source(data, image_labels.FIELDS)
            scores |= _scores(name, *self._found(model, data, source, name)[1:])
        return scores

    def report(self, model: System) -> tuple[dict[str, float], dict[str, Report]]:
        """The scores of `evaluate` for the test sets, and a `Report` of each.

        An image's score is how many of the nearest eight are of its class.
        """
        scores, reports = {}, {}
        for name, data in pipeline.evaluation_sets(self.config, "test").items():
            source = pipeline.make_source(data, image_labels.FIELDS)
            elements, labels, nearest = self._found(model, data, source, name)
            scores |= _scores(name, labels, nearest)
            reports[name] = _report(source, elements, labels, nearest)
        return scores, reports

    def _found(
        self, model: System, data: Any, source: Any, name: str
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Int[np.ndarray, "n k"]]:
        """The elements of a test set that have a class, that class, and the nearest of them."""
        title = f"features of {name}"
        side = image_features.side_of(
            self._jitted_embed, model, self.config, data, source, title
        ).labeled()
        return side.elements, side.labels(), nearest_others(side.features, max(KS))

    def pictures(
        self, model: System, batch: dict[str, np.ndarray]
    ) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """The first images of a batch, and what is nearest to each among the batch's others."""
        images, labels = batch["image"][:_MOST_DRAWN], batch["labels"][:_MOST_DRAWN].argmax(1)
        if len(images) < 2:
            return {}
        features = self.embed(model, images)
        nearest = nearest_others(features, max(KS))
        number = min(self.config.eval.num_pictures, len(images))
        rows = [
            _row(images[i], [*images[nearest[i]]], labels[nearest[i]] == labels[i], cell=96)
            for i in range(number)
        ]
        titles = [self.classes[label] for label in labels[:number]]
        return {"nearest": contact_sheet(rows, _columns(nearest), titles, 96, legend=_LEGEND)}


def _scores(
    name: str, labels: Int[np.ndarray, " n"], nearest: Int[np.ndarray, "n k"]
) -> dict[str, float]:
    found = recalls(labels, nearest, KS)
    return {f"{name}/recall@{k}": 100 * share for k, share in found.items()}


def _report(
    source: Any,
    elements: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    nearest: Int[np.ndarray, "n k"],
) -> Report:
    """Recall of each class, and how many of the nearest are right of each image, by element."""
    right = labels[nearest] == labels[:, None]
    rows = []
    for number, name in enumerate(source.classes):
        mine = labels == number
        rows.append({"class": name, **{f"recall@{k}": _share(right[mine, :k]) for k in KS}})
        rows[-1]["images"] = int(mine.sum())
    numbers = np.bincount(labels, minlength=len(source.classes))
    scores = np.where(numbers[labels] > 1, right.sum(axis=1), np.nan)
    order, sorted_elements = sort_images(elements, scores, lowest_first=True)
    shown = order[:MOST_SHOWN]

    def draw(places: Sequence[int]) -> UInt8[np.ndarray, "h w 3"]:
        cell, sheet, titles = sheet_cell(len(places)), [], []
        for place in places:
            query = shown[place]
            images = [source[int(elements[i])]["image"] for i in nearest[query]]
            own = source[int(elements[query])]["image"]
            sheet.append(_row(own, images, right[query], cell))
            name = caption(name_of(source, int(elements[query])), source.classes[labels[query]])
            titles.append(name)
        return contact_sheet(sheet, _columns(nearest), titles, cell, legend=_LEGEND)

    def name_element(element: int) -> str:
        return name_of(source, element)

    images = Images("right of 8", sorted_elements, scores[order], name_element, draw)
    return Report(rows=rows, by="recall@1", images=images)


def _share(right: Bool[np.ndarray, "n k"]) -> float:
    """In percent, of queries with a right one; NaN where there is no query."""
    return 100 * float(right.any(axis=1).mean()) if len(right) else float("nan")


def _columns(nearest: Int[np.ndarray, "n k"]) -> list[str]:
    return ["query", "nearest", *(f"{rank}." for rank in range(2, nearest.shape[1] + 1))]


def _row(
    query: UInt8[np.ndarray, "h w c"],
    images: Sequence[UInt8[np.ndarray, "_h _w c"]],
    right: Bool[np.ndarray, " k"],
    cell: int,
) -> list[UInt8[np.ndarray, "h2 w2 3"]]:
    """A query and its nearest images, framed by whether they are right."""
    framed = []
    for image, is_right in zip(images, right, strict=True):
        drawn, edge = fit(image, cell), max(2, cell * _EDGE // 100)
        inside = drawn[edge:-edge, edge:-edge].copy()
        drawn[:] = RIGHT if is_right else WRONG
        drawn[edge:-edge, edge:-edge] = inside
        framed.append(drawn)
    return [fit(query, cell), *framed]
