"""How two sets of pictures from the air are scored, where they differ from COCO.

TinyPerson's rules and scores; VisDrone's own variant, which is an option: what papers print of it
is mostly COCO's AP of its validation set.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from vadapt.metrics.detection import Curves, Found, Rules, Truth

# Sides of a square of the object's area, in pixels.
TINY_SIDES = {
    "all": (1.0, 1e5),
    "tiny": (1.0, 20.0),
    "tiny1": (1.0, 8.0),
    "tiny2": (8.0, 12.0),
    "tiny3": (12.0, 20.0),
    "small": (20.0, 32.0),
    "reasonable": (32.0, 1e5),
}
# As VisDrone's own tool has it, after `without_ignored_regions`.
VISDRONE = Rules(max_dets=(1, 10, 100, 500))
MOST_VISDRONE = 500  # detections of a picture, of all classes together


def same_share(iou: float) -> float:
    """TinyPerson's benchmark: a detection is ignored from the threshold of IoU itself on."""
    return iou


def doubled_share(iou: float) -> float:
    """What the IoU of two boxes of one size is as a share of one of them: 2 t / (1 + t)."""
    return 2 * iou / (1 + iou)


# Ignored are crowds and objects that are ignored or uncertain; one class.
TINY_PERSON = Rules(
    ious=(0.25, 0.5, 0.75),
    areas={name: (low**2, high**2) for name, (low, high) in TINY_SIDES.items()},
    max_dets=(200,),
    ignored_share=same_share,
)


def tiny_person_scores(curves: Curves, rules: Rules = TINY_PERSON) -> dict[str, float]:
    """AP in percent by area and threshold, the benchmark's first: "AP_tiny_50", "AP_tiny1_50", ...

    NaN where no object counts.
    """
    ious, areas = [round(100 * iou) for iou in rules.ious], list(rules.areas)
    first = [("tiny", 50), ("tiny1", 50), ("tiny2", 50), ("tiny3", 50), ("small", 50)]
    first += [("tiny", 25), ("tiny", 75)]
    every = first + [(area, iou) for iou in ious for area in areas]
    mean = 100 * curves.precision.mean((1, 2))
    return {
        f"AP_{area}_{iou}": float(mean[ious.index(iou), areas.index(area)])
        for area, iou in dict.fromkeys(every)
        if area in areas and iou in ious
    }


def without_ignored_regions(
    found: Found, truth: Truth, regions: Truth, *, share: float = 0.5, most: int = MOST_VISDRONE
) -> tuple[Found, Truth]:
    """VisDrone's own variant: drop what lies in ignored regions, then all but the best detections.

    Args:
        regions: the ignored regions, of any class; `truth` is without them.
        share: of a box's area in the regions of its image, from which on it is dropped.
        most: detections of one image, of all classes together, by descending score.
    """
    found = found.rows(~_in_regions(found, regions, share))
    truth = truth.rows(~_in_regions(truth, regions, share))
    order = np.lexsort((-found.scores, found.images))
    images = found.images[order]
    rank = np.arange(len(order)) - np.searchsorted(images, images)
    return found.rows(np.sort(order[rank < most])), truth


def _in_regions(boxes: Found | Truth, regions: Truth, share: float) -> Bool[np.ndarray, " n"]:
    """Whether at least this share of each box lies in regions of its image."""
    inside = np.zeros(len(boxes.images), bool)
    for image in np.intersect1d(boxes.images, regions.images):
        here = np.flatnonzero(boxes.images == image)
        covers = regions.boxes_xyxy[regions.images == image]
        for place in here.tolist():
            box = boxes.boxes_xyxy[place]
            area = (box[2:] - box[:2]).prod()
            inside[place] = area > 0 and covered_area(box, covers) >= share * area
    return inside


def covered_area(box: Float[np.ndarray, " 4"], covers: Float[np.ndarray, "n 4"]) -> float:
    """Square pixels of a box that lie in any of the others, which may overlap.

    >>> covered_area(np.array([0.0, 0, 4, 4]), np.array([[0.0, 0, 2, 4], [1, 0, 3, 2]]))
    10.0
    """
    cut = np.clip(covers, np.tile(box[:2], 2), np.tile(box[2:], 2))
    xs, ys = np.unique(cut[:, [0, 2]]), np.unique(cut[:, [1, 3]])
    held = np.zeros((max(len(ys) - 1, 0), max(len(xs) - 1, 0)), bool)
    for left, top, right, bottom in cut:
        rows = slice(*np.searchsorted(ys, [top, bottom]))
        held[rows, slice(*np.searchsorted(xs, [left, right]))] = True
    return float((np.diff(ys)[:, None] * np.diff(xs) * held).sum())
