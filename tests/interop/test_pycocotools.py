"""pycocotools scores boxes as vadapt does: ties, crowds, empty images and classes included."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest

from tests.metrics.test_detection import drawn
from vadapt.metrics.detection import COCO, class_precision, coco_scores, detection_curves

CLASSES = 4


def official(found, truth, max_dets):
    """Precision, recall (-1 where absent) and the twelve numbers of pycocotools."""
    from pycocotools import coco
    from pycocotools.cocoeval import COCOeval

    def rows(boxes, **columns):
        for number, (left, top, right, bottom) in enumerate(boxes.boxes_xyxy.tolist()):
            yield {
                "image_id": int(boxes.images[number]),
                "category_id": int(boxes.classes[number]) + 1,
                "bbox": [left, top, right - left, bottom - top],
                **{name: column[number].item() for name, column in columns.items()},
            }

    objects = rows(truth, area=truth.areas, iscrowd=truth.crowds.astype(int))
    files = coco.COCO()
    files.dataset = {
        "info": {},
        "images": [{"id": number} for number in range(12)],
        "categories": [{"id": number + 1, "name": str(number)} for number in range(CLASSES)],
        "annotations": [{"id": number, **row} for number, row in enumerate(objects, 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        files.createIndex()
        scored = COCOeval(files, files.loadRes([*rows(found, score=found.scores)]), "bbox")
        scored.params.maxDets = list(max_dets)
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return scored.eval["precision"], scored.eval["recall"], scored.stats


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("max_dets", [(1, 10, 100), (1, 2, 3)])
def test_scores_are_those_of_pycocotools(seed, max_dets):
    found, truth = drawn(seed, classes=CLASSES)
    rules = dataclasses.replace(COCO, max_dets=max_dets)
    curves = detection_curves(found, truth, CLASSES, rules)
    precision, recall, stats = official(found, truth, max_dets)
    np.testing.assert_array_equal(np.nan_to_num(curves.precision, nan=-1.0), precision[..., -1])
    np.testing.assert_array_equal(np.nan_to_num(curves.recall, nan=-1.0), recall)
    scores = np.nan_to_num([*coco_scores(curves, rules).values()], nan=-100.0) / 100
    if max_dets[-1] == 100:  # else it looks for 100 in vain
        np.testing.assert_allclose(scores, stats, rtol=1e-12)
        assert np.isnan(class_precision(curves)).tolist() == [False, False, False, True]
