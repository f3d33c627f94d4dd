"""Scores of boxes: COCO's by hand and over processes, TinyPerson's and VisDrone's own rules."""

import dataclasses
import sys

import numpy as np
import pytest

from tests.processes import finish, lines_of, local
from vadapt.errors import ConfigError, ShapeError
from vadapt.metrics.aerial import (
    TINY_PERSON,
    VISDRONE,
    covered_area,
    doubled_share,
    tiny_person_scores,
    without_ignored_regions,
)
from vadapt.metrics.detection import (
    COCO,
    BoxAnswers,
    Found,
    Rules,
    Truth,
    box_overlaps,
    class_precision,
    coco_scores,
    detection_curves,
)


def drawn(seed, classes=4, images=12):
    """Boxes of a coarse grid, so that scores and overlaps tie; the last class has no object."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        corner = rng.integers(0, 40, (count, 2)) * 4.0
        return np.concatenate([corner, corner + rng.integers(1, 40, (count, 2)) * 4.0], 1)

    there, n = boxes(60), 150
    areas = (there[:, 2:] - there[:, :2]).prod(1) * rng.choice([0.5, 1.0], 60)
    places = rng.integers(0, images, 60), rng.integers(0, classes - 1, 60)
    crowds = rng.random(60) < 0.15
    truth = Truth(*places, there, areas, crowds, np.zeros(60, bool))
    near = there[rng.integers(0, 60, n)] + rng.integers(-1, 2, (n, 4)) * 2.0
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 2)
    source = rng.integers(0, 60, n)
    same = rng.random(n) < 0.7
    near = np.where(same[:, None], there[source] + rng.integers(0, 2, (n, 4)) * 2.0, near)
    places = [
        np.where(same, column[source], rng.permutation(np.resize(column, n))) for column in places
    ]
    places[1] = np.where(rng.random(n) < 0.05, classes - 1, places[1])
    return Found(*places, near, rng.integers(1, 8, n) / 8), truth


def truth_of(boxes, *, images=0, areas=None, crowds=False, ignored=False):
    boxes = np.array(boxes, float).reshape(-1, 4)
    n = len(boxes)
    sizes = (boxes[:, 2:] - boxes[:, :2]).prod(1) if areas is None else np.array(areas, float)
    whole = np.zeros(n, int)
    return Truth(whole + images, whole, boxes, sizes, whole + crowds > 0, whole + ignored > 0)


def found_of(boxes, scores, images=0):
    boxes = np.array(boxes, float).reshape(-1, 4)
    whole = np.zeros(len(boxes), int)
    return Found(whole + images, whole, boxes, np.array(scores, float))


def precision_of(found, truth, rules=COCO):
    """AP at the first threshold over all areas."""
    return float(detection_curves(found, truth, 1, rules).precision[0, :, 0, 0].mean())


A, B, FAR = [0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]


def test_a_false_detection_between_two_right_ones():
    found = found_of([A, FAR, B], [0.9, 0.8, 0.7])
    # Precision 1 up to recall 0.5 (51 points), 2/3 up to 1 (50 points).
    assert precision_of(found, truth_of([A, B])) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_no_detection_finds_nothing_and_no_object_has_no_score():
    none = found_of([], [])
    scores = coco_scores(detection_curves(none, truth_of([A]), 1))
    assert scores["AP"] == scores["AR100"] == 0.0
    assert np.isnan(scores["APl"])
    empty = coco_scores(detection_curves(found_of([A], [0.5]), truth_of([]), 1))
    assert all(np.isnan(value) for value in empty.values())


@pytest.mark.parametrize("flags", [{"crowds": True}, {"ignored": True}])
def test_what_is_ignored_is_neither_to_be_found_nor_wrong(flags):
    there = truth_of([A, B])
    parts = [truth_of([FAR], **flags), there]
    both = Truth(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    assert precision_of(found_of([FAR, A, B], [0.9, 0.8, 0.7]), both) == pytest.approx(1.0)
    # A crowd takes any number of detections, a single ignored object one.
    twice = precision_of(found_of([FAR, FAR, A, B], [0.9, 0.9, 0.8, 0.7]), both)
    assert (twice == pytest.approx(1.0)) == ("crowds" in flags)


def test_small_parts_of_a_crowd_match_it_and_of_an_object_not():
    part = [0, 0, 5, 5]
    assert box_overlaps(np.array([part]), np.array([A]))[0, 0] == 0.25
    assert box_overlaps(np.array([part]), np.array([A]), np.array([True]))[0, 0] == 1.0


def test_only_the_best_of_an_image_and_class_count():
    found = found_of([FAR, A], [0.9, 0.8])
    rules = dataclasses.replace(COCO, max_dets=(1, 2))
    curves = detection_curves(found, truth_of([A]), 1, rules)
    assert curves.recall[0, 0, 0].tolist() == [0.0, 1.0]
    assert coco_scores(curves, rules)["AR2"] == 100.0
    with pytest.raises(ConfigError, match="ascending"):
        Rules(max_dets=(10, 1))


def test_classes_stand_apart():
    found, truth = drawn(0)
    each = class_precision(detection_curves(found, truth, 4))
    kept = found.rows(found.classes == 1), truth.rows(truth.classes == 1)
    assert class_precision(detection_curves(*kept, 4))[1] == each[1]
    assert np.isnan(each).tolist() == [False, False, False, True]


def test_broken_columns_are_refused():
    there = truth_of([A])
    with pytest.raises(ShapeError, match="scores are NaN"):
        detection_curves(found_of([A], [np.nan]), there, 1)
    with pytest.raises(ShapeError, match="boxes are NaN"):
        detection_curves(found_of([[0, 0, np.nan, 1]], [1]), there, 1)
    with pytest.raises(ShapeError, match="expected 0 to 0"):
        detection_curves(found_of([A], [1])._replace(classes=np.array([1])), there, 1)
    with pytest.raises(ShapeError, match="a row a box"):
        detection_curves(found_of([A], [1])._replace(scores=np.ones(2)), there, 1)


def test_tiny_person_ignores_what_lies_in_ignored_objects():
    region = truth_of([[40, 40, 80, 80]], ignored=True)
    there = Truth(*(np.concatenate(parts) for parts in zip(region, truth_of([A]), strict=True)))
    half = found_of([[32, 50, 50, 60], A], [0.9, 0.8])  # 10 of 18 pixels of width inside
    scores = tiny_person_scores(detection_curves(half, there, 1, TINY_PERSON))
    assert list(scores)[:2] == ["AP_tiny_50", "AP_tiny1_50"]
    assert scores["AP_tiny_50"] == pytest.approx(100)
    assert scores["AP_tiny_75"] == pytest.approx(50)  # 10 / 18 is less
    rules = dataclasses.replace(TINY_PERSON, ignored_share=doubled_share)
    assert tiny_person_scores(detection_curves(half, there, 1, rules), rules)[
        "AP_tiny_50"
    ] == pytest.approx(50)  # from 2/3 on
    plain = dataclasses.replace(TINY_PERSON, ignored_share=None)
    assert precision_of(half, there, plain) == pytest.approx(0.5)


def test_visdrone_drops_what_is_in_ignored_regions_and_all_but_the_best():
    regions = truth_of([[0, 0, 6, 100], [4, 0, 10, 4]])  # overlap; 6*10 + 4*4 of A's 100
    assert covered_area(np.array(A, float), regions.boxes_xyxy) == 76
    found = found_of([A, B, FAR], [0.9, 0.8, 0.7])
    kept, truth = without_ignored_regions(found, truth_of([A, B]), regions, most=1)
    assert kept.boxes_xyxy.tolist() == [B]
    assert truth.boxes_xyxy.tolist() == [B]
    assert precision_of(kept, truth, VISDRONE) == pytest.approx(1.0)
    more, _ = without_ignored_regions(found, truth_of([A]), regions, share=0.77)
    assert len(more.scores) == 3
    elsewhere = regions._replace(images=regions.images + 1)
    assert len(without_ignored_regions(found, truth_of([A]), elsewhere)[0].scores) == 3


def test_answers_of_batches_are_those_of_all_at_once():
    found, truth = drawn(3)
    answers = BoxAnswers()
    for first in (8, 0, 4):  # in any order
        numbers = np.arange(first, first + 4)
        rows = [np.flatnonzero(found.images == number) for number in numbers]
        most = max(map(len, rows)) + 1
        places = np.array([np.resize(np.append(row, 0), most) for row in rows])
        kept = np.arange(most) < np.array([[len(row)] for row in rows])
        parts = (found.boxes_xyxy[places], found.scores[places], found.classes[places])
        answers.add(numbers, *parts, kept=kept)
    answers.add(numbers, *parts, kept=kept, valid=np.zeros(4, bool))
    again, images = answers.found()
    assert images.tolist() == list(range(12))
    for one, other in zip(
        detection_curves(again, truth, 4), detection_curves(found, truth, 4), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ConfigError, match="nothing to score"):
        BoxAnswers().found()


def test_processes_that_share_the_images_score_them_as_one_does():
    code = (
        "import numpy as np, jax; from vadapt.runtime.distributed import start\n"
        "from vadapt.metrics.detection import BoxAnswers, detection_curves, coco_scores\n"
        "from tests.metrics.test_detection import drawn; start()\n"
        "found, truth = drawn(3)\n"
        "def scores(of):\n"
        "    answers = BoxAnswers()\n"
        "    for number in of:\n"
        "        rows = np.flatnonzero(found.images == number)\n"
        "        parts = found.boxes_xyxy[rows], found.scores[rows], found.classes[rows]\n"
        "        answers.add(np.array([number]), *(part[None] for part in parts))\n"
        "    mine, images = answers.found()\n"
        "    return len(images), coco_scores(detection_curves(mine, truth, 4))\n"
        "number, shared = scores(range(jax.process_index(), 12, 2))\n"
        "whole = coco_scores(detection_curves(found, truth, 4))\n"
        "print('images', number, repr(shared) == repr(whole))\n"
    )
    said, _ = finish(local(2, [sys.executable, "-c", code]))
    for number in range(2):
        assert "images 12 True" in lines_of(number, said)
