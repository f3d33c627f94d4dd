"""Average precision and recall of boxes, as pycocotools 2.0.11 has them, in NumPy.

`detection_curves` matches what was found in all images with what is there, `Rules` say how; the
default is COCO's. `BoxAnswers` gathers detections batch by batch, over all processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from vadapt.errors import ConfigError, ShapeError
from vadapt.metrics.gathering import of_all_processes

AREAS = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
RECALLS = np.linspace(0.0, 1.0, 101)


class Truth(NamedTuple):
    """The objects of all images, a row each.

    Attributes:
        images: the number of the image.
        boxes_xyxy: left, top, right, bottom in pixels of the image's file.
        areas: in square pixels; not always those of the boxes.
        crowds: a group: any number of detections may match it, by the share of theirs inside it.
        ignored: neither to be found nor wrong to be found, as crowds are always.
    """

    images: Int[np.ndarray, " n"]
    classes: Int[np.ndarray, " n"]
    boxes_xyxy: Float[np.ndarray, "n 4"]
    areas: Float[np.ndarray, " n"]
    crowds: Bool[np.ndarray, " n"]
    ignored: Bool[np.ndarray, " n"]

    def rows(self, chosen: Any) -> Truth:
        """Some of the objects, by their places or by bools."""
        return Truth(*(column[chosen] for column in self))


class Found(NamedTuple):
    """Detections in all images, a row each; of equal scores the first goes first."""

    images: Int[np.ndarray, " n"]
    classes: Int[np.ndarray, " n"]
    boxes_xyxy: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, " n"]

    def rows(self, chosen: Any) -> Found:
        """Some of the detections, by their places or by bools."""
        return Found(*(column[chosen] for column in self))


@dataclasses.dataclass(frozen=True)
class Rules:
    """What counts as found, and which objects and detections count.

    Attributes:
        ious: an object is found from this intersection over union on, one threshold each.
        areas: the least and the largest area in square pixels, both included, by name; other
            objects are ignored, and other detections if they match nothing.
        max_dets: the best detections of an image and a class that count, ascending. Precision
            is that of the last; recall has them all.
        ignored_share: of a detection that matches nothing, inside of an ignored object, from which
            on it is ignored too, as a function of the threshold; None: never.
    """

    ious: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
    areas: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=lambda: AREAS)
    max_dets: tuple[int, ...] = (1, 10, 100)
    ignored_share: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        if (
            not self.max_dets
            or min(self.max_dets) < 1
            or list(self.max_dets) != sorted(set(self.max_dets))
        ):
            raise ConfigError(f"max_dets is {self.max_dets}; numbers from 1 on, ascending")
        if not self.ious or not self.areas:
            raise ConfigError("rules need a threshold of IoU and a range of areas")


COCO = Rules()


class Curves(NamedTuple):
    """Precision and recall in [0, 1] by threshold, class and area; NaN where no object counts.

    Attributes:
        precision: the best at each of `RECALLS` or above it, of `max_dets[-1]` detections.
        recall: of the best `max_dets` detections of an image and class.
    """

    precision: Float[np.ndarray, "t r k a"]
    recall: Float[np.ndarray, "t k a m"]


def detection_curves(found: Found, truth: Truth, num_classes: int, rules: Rules = COCO) -> Curves:
    """Precision and recall of detections, matched class by class and image by image.

    Detections of one image and class go by descending score, and each takes the object of the
    largest IoU that is free, one that counts before one that is ignored; of equal IoU the last.

    Raises:
        ShapeError: a class is none of `num_classes`, a box or score is NaN, or columns differ.
    """
    _check(found, truth, num_classes)
    sizes = len(rules.ious), len(RECALLS), num_classes, len(rules.areas), len(rules.max_dets)
    precision = np.full(sizes[:4], np.nan)
    recall = np.full((sizes[0], *sizes[2:]), np.nan)
    for number in range(num_classes):
        here = _of_class(found, truth, number, rules)
        if here is not None:
            precision[:, :, number], recall[:, number] = _class_curves(here, rules)
    return Curves(precision, recall)


def coco_scores(curves: Curves, rules: Rules = COCO) -> dict[str, float]:
    """COCO's twelve numbers in percent by name, NaN where no object counts.

    `AP` is the mean over thresholds, classes and recalls, `AP50` and `AP75` at one threshold,
    `APs`, `APm`, `APl` by area; `AR1`, `AR10`, `AR100` by `max_dets`, and `ARs` and so on.
    """
    names = list(rules.areas)
    everything = names.index("all")
    scores = {"AP": _mean(curves.precision[..., everything])}
    for threshold in (0.5, 0.75):
        place = np.flatnonzero(np.isclose(rules.ious, threshold))
        scores[f"AP{round(100 * threshold)}"] = _mean(curves.precision[place, ..., everything])
    parts = {name[0]: names.index(name) for name in ("small", "medium", "large") if name in names}
    scores |= {f"AP{letter}": _mean(curves.precision[..., a]) for letter, a in parts.items()}
    for place, most in enumerate(rules.max_dets):
        scores[f"AR{most}"] = _mean(curves.recall[..., everything, place])
    scores |= {f"AR{letter}": _mean(curves.recall[..., a, -1]) for letter, a in parts.items()}
    return {name: 100 * value for name, value in scores.items()}


def class_precision(curves: Curves, rules: Rules = COCO) -> Float[np.ndarray, " k"]:
    """AP of each class over all areas, in [0, 1]; NaN for a class without objects that count."""
    return curves.precision[..., list(rules.areas).index("all")].mean((0, 1))


class BoxAnswers:
    """Detections batch by batch, kept in float32 on the host, in pixels of the images' files.

    Processes may have any batches of any sizes; each image is known by its number in the source.

    >>> answers = BoxAnswers()
    >>> boxes = np.array([[[0, 0, 4, 4], [1, 1, 2, 2]]], np.float32)
    >>> answers.add(np.array([7]), boxes, np.array([[0.9, 0.1]]), np.array([[2, 0]]),
    ...     kept=np.array([[True, False]]))
    >>> found, images = answers.found()
    >>> found.images.tolist(), found.classes.tolist(), images.tolist()
    ([7], [2], [7])
    """

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._images: list[np.ndarray] = []

    def add(
        self,
        elements: Int[np.ndarray, " b"],
        boxes_xyxy: Float[np.ndarray, "b d 4"],
        scores: Float[np.ndarray, "b d"],
        classes: Int[np.ndarray, "b d"],
        *,
        kept: Bool[np.ndarray, "b d"] | None = None,
        valid: Bool[np.ndarray, " b"] | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            elements: the images' numbers: the field "element", see `vadapt.data.numbered`.
            kept: False for rows that are no detections.
            valid: False for images that only fill the batch up.
        """
        counts = np.ones(len(elements), bool) if valid is None else np.asarray(valid, bool)
        real = np.ones(scores.shape, bool) if kept is None else np.asarray(kept, bool)
        image, place = np.nonzero(real & counts[:, None])
        numbers = np.asarray(elements, np.int32)
        columns = [numbers[image], np.asarray(classes, np.int32)[image, place]]
        values = [np.asarray(boxes_xyxy, np.float32)[image, place]]
        values.append(np.asarray(scores, np.float32)[image, place, None])
        # As whole numbers, so that those of images stay exact.
        bits = np.concatenate(values, 1).view(np.int32)
        self._rows.append(np.concatenate([np.stack(columns, 1), bits], 1))
        self._images.append(numbers[counts])

    def found(self) -> tuple[Found, Int[np.ndarray, " i"]]:
        """The detections of all processes, image by image, and the numbers of all images.

        Raises:
            ConfigError: nothing was added by any process.
        """
        images = of_all_processes(np.concatenate([np.zeros(0, np.int32), *self._images]))
        if not len(images):
            raise ConfigError("no image was added: nothing to score")
        rows = of_all_processes(np.concatenate([np.zeros((0, 7), np.int32), *self._rows]))
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        values = np.ascontiguousarray(rows[:, 2:]).view(np.float32)
        found = Found(rows[:, 0], rows[:, 1], values[:, :4].astype(np.float64), values[:, 4])
        return found, np.unique(images)


def box_overlaps(
    boxes: Num[np.ndarray, "n 4"],
    others: Num[np.ndarray, "m 4"],
    crowds: Bool[np.ndarray, " m"] | None = None,
) -> Float[np.ndarray, "n m"]:
    """Intersection over union of every two boxes (corners), 0 where they do not meet.

    Args:
        crowds: others of which the intersection is divided by the area of the box alone.
    """
    boxes, others = boxes.astype(np.float64)[:, None], others.astype(np.float64)[None]
    sides = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(
        boxes[..., :2], others[..., :2]
    )
    shared = np.where((sides > 0).all(-1), sides.prod(-1), 0.0)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    union = area + (others[..., 2:] - others[..., :2]).prod(-1) - shared
    if crowds is not None:
        union = np.where(crowds, area, union)
    return np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)


class _Matched(NamedTuple):
    """The detections of one class in one image, by descending score."""

    scores: np.ndarray  # [d]
    hit: np.ndarray  # [a, t, d]
    ignored: np.ndarray  # [a, t, d]
    counted: np.ndarray  # [a], objects


def _check(found: Found, truth: Truth, num_classes: int) -> None:
    for rows in (found, truth):
        if len({len(column) for column in rows}) > 1 or rows.boxes_xyxy.shape[1:] != (4,):
            raise ShapeError(f"columns {[column.shape for column in rows]}: a row a box, [n, 4]")
        classes = rows.classes
        if len(classes) and not 0 <= classes.min() <= classes.max() < num_classes:
            raise ShapeError(
                f"classes {classes.min()} to {classes.max()}; expected 0 to {num_classes - 1}"
            )
        if np.isnan(rows.boxes_xyxy).any():
            raise ShapeError(f"{int(np.isnan(rows.boxes_xyxy).any(1).sum())} boxes are NaN")
    if np.isnan(found.scores).any():
        raise ShapeError(f"{int(np.isnan(found.scores).sum())} scores are NaN: no order has them")


def _of_class(found: Found, truth: Truth, number: int, rules: Rules) -> list[_Matched] | None:
    """The matches of every image in which the class is or was found; None if it is nowhere."""
    mine = found.rows(np.flatnonzero(found.classes == number))
    mine = mine.rows(np.lexsort((-mine.scores, mine.images)))  # stable
    there = truth.rows(np.flatnonzero(truth.classes == number))
    there = there.rows(np.argsort(there.images, kind="stable"))
    if not len(there.images):
        return None
    matched = []
    for image in np.union1d(mine.images, there.images):
        d = slice(*np.searchsorted(mine.images, [image, image + 1]))
        g = slice(*np.searchsorted(there.images, [image, image + 1]))
        best = mine.rows(slice(d.start, min(d.stop, d.start + rules.max_dets[-1])))
        matched.append(_match(best, there.rows(g), rules))
    return matched


def _match(found: Found, truth: Truth, rules: Rules) -> _Matched:
    """Match the detections of one image and class, by descending score, with its objects."""
    low, high = np.array([*rules.areas.values()]).T[..., None]
    flagged = truth.ignored | truth.crowds
    ignored = flagged | (truth.areas < low) | (truth.areas > high)  # [a, g]
    overlaps = box_overlaps(found.boxes_xyxy, truth.boxes_xyxy, truth.crowds)
    thresholds = np.minimum(rules.ious, 1 - 1e-10)
    shape = (len(low), len(thresholds), len(found.scores))
    hit, dropped = np.zeros(shape, bool), np.zeros(shape, bool)
    free = np.ones((*shape[:2], len(truth.areas)), bool)
    areas, ious = np.ogrid[: shape[0], : shape[1]]
    for place in np.flatnonzero(overlaps.max(1, initial=0) >= thresholds.min()).tolist():
        near = free & (overlaps[place] >= thresholds[:, None])
        counting = near & ~ignored[:, None]
        near = np.where(counting.any(-1, keepdims=True), counting, near)
        ranked = np.where(near, overlaps[place], -1.0)
        chosen = ranked.shape[-1] - 1 - ranked[..., ::-1].argmax(-1)
        matched = near.any(-1)
        hit[..., place] = matched
        dropped[..., place] = matched & ignored[areas, chosen]
        free[areas, ious, chosen] &= ~matched | truth.crowds[chosen]
    size = (found.boxes_xyxy[:, 2:] - found.boxes_xyxy[:, :2]).prod(-1)
    outside = (size < low) | (size > high)
    if rules.ignored_share is not None:
        share = _inside_share(found.boxes_xyxy, truth.boxes_xyxy, ignored)[:, None]
        least = np.array([rules.ignored_share(iou) for iou in rules.ious])[:, None]
        dropped |= ~hit & (share >= least)
    dropped |= ~hit & outside[:, None]
    return _Matched(found.scores, hit, dropped, (~ignored).sum(-1))


def _inside_share(
    boxes: np.ndarray, others: np.ndarray, ignored: Bool[np.ndarray, "a g"]
) -> Float[np.ndarray, "a d"]:
    """The largest share of each box that lies in one of the ignored others; 0 without any."""
    shares = box_overlaps(boxes, others, np.ones(len(others), bool))
    return np.where(ignored[:, None], shares, 0.0).max(-1, initial=0.0)


def _class_curves(images: list[_Matched], rules: Rules) -> tuple[np.ndarray, np.ndarray]:
    """Precision [t, r, a] and recall [t, a, m] of one class."""
    counted = np.sum([image.counted for image in images], axis=0)
    precision = np.full((len(rules.ious), len(RECALLS), len(rules.areas)), np.nan)
    recall = np.full((len(rules.ious), len(rules.areas), len(rules.max_dets)), np.nan)
    for place, most in enumerate(rules.max_dets):
        scores = np.concatenate([image.scores[:most] for image in images])
        order = np.argsort(-scores, kind="stable")
        hit, ignored = (
            np.concatenate([part[..., :most] for part in parts], -1)[..., order]
            for parts in zip(*((image.hit, image.ignored) for image in images), strict=True)
        )
        right, wrong = (hit & ~ignored).cumsum(-1), (~hit & ~ignored).cumsum(-1)
        for area in np.flatnonzero(counted).tolist():
            reached = right[area] / counted[area]
            recall[:, area, place] = reached[:, -1] if len(order) else 0.0
            if most == rules.max_dets[-1]:
                exact = right[area] / (right[area] + wrong[area] + np.spacing(1))
                precision[:, :, area] = [
                    _at_recalls(*pair) for pair in zip(reached, exact, strict=True)
                ]
    return precision, recall


def _at_recalls(recall: np.ndarray, precision: np.ndarray) -> Float[np.ndarray, " r"]:
    """The best precision at each of `RECALLS` or above, 0 where none is reached."""
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, RECALLS, side="left")
    return np.append(best, 0.0)[places]


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")
