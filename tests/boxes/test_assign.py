"""Assignment equals plain loops, and more slots for ground truths change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.boxes.test_coders import random_boxes
from vadapt.boxes.anchors import AnchorGrid
from vadapt.boxes.assign import BACKGROUND, IGNORED, by_center, by_overlap, by_statistics
from vadapt.boxes.geometry import areas, centers, iof, iou, scale

GRID = AnchorGrid.octaves((8, 16, 32), base=2, per_octave=1, ratios=(0.5, 1.0))
SIZES = [(12, 14), (6, 7), (3, 4)]
LEVELS = GRID.levels(SIZES)
ANCHORS = jnp.concatenate(LEVELS)
NUMBER = 37  # more than two chunks


@pytest.fixture
def boxes(rng):
    return random_boxes(rng, NUMBER, 60.0)


def plain_overlap(overlaps, positive, negative, least):
    rows = np.full(overlaps.shape[1], IGNORED)
    rows[overlaps.max(0) < negative] = BACKGROUND
    rows = np.where(overlaps.max(0) >= positive, overlaps.argmax(0), rows)
    for row, one in enumerate(overlaps):
        if one.max() >= least:
            rows[one == one.max()] = row
    return rows


@pytest.mark.parametrize("least", [0.0, 0.2])
def test_by_overlap_equals_a_plain_loop(boxes, least):
    found = by_overlap(ANCHORS, boxes, jnp.ones(NUMBER, bool), least=least)
    overlaps = np.asarray(jax.jit(iou)(boxes[:, None], ANCHORS[None]))
    np.testing.assert_array_equal(found.rows, plain_overlap(overlaps, 0.5, 0.4, least))
    np.testing.assert_allclose(found.overlaps, overlaps.max(0), rtol=1e-6)


def test_every_box_that_meets_an_anchor_has_one(rng):
    boxes = random_boxes(rng, 4, 60.0)
    found = by_overlap(ANCHORS, boxes, jnp.ones(4, bool))
    assert set(range(4)) <= set(np.asarray(found.rows).tolist())


def test_a_tolerance_takes_what_is_nearly_the_best():
    anchors = jnp.asarray([[0.0, 0, 10, 10], [0, 0, 10.01, 10], [0, 0, 30, 30]])
    box, there = jnp.asarray([[2.0, 2, 5, 5]]), jnp.ones(1, bool)
    assert by_overlap(anchors, box, there).rows.tolist() == [0, BACKGROUND, BACKGROUND]
    near = by_overlap(anchors, box, there, tolerance=1e-3)
    assert near.rows.tolist() == [0, 0, BACKGROUND]


def plain_statistics(boxes, nearest):
    anchors, middles = np.asarray(ANCHORS), np.asarray(centers(ANCHORS))
    overlaps = np.asarray(iou(boxes[:, None], ANCHORS[None]))
    best, rows = np.full(len(anchors), -1.0), np.full(len(anchors), BACKGROUND)
    for row, box in enumerate(np.asarray(boxes)):
        middle, start, chosen = (box[:2] + box[2:]) / 2, 0, []
        for level in LEVELS:
            far = np.linalg.norm(middles[start : start + len(level)] - middle, axis=1)
            chosen.extend(start + np.argsort(far, kind="stable")[:nearest])
            start += len(level)
        own = overlaps[row][chosen]
        limit = own.mean() + own.std(ddof=1)
        for anchor, overlap in zip(chosen, own, strict=True):
            x, y = middles[anchor]
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap >= limit and inside and overlap > best[anchor]:
                best[anchor], rows[anchor] = overlap, row
    return rows


def test_by_statistics_equals_a_plain_loop(boxes):
    found = by_statistics(LEVELS, boxes, jnp.ones(NUMBER, bool), nearest=20)
    np.testing.assert_array_equal(found, plain_statistics(boxes, 20))
    assert (found >= 0).sum() > NUMBER


def plain_center(boxes, classes, num_classes, core, shadow):
    middles, n = np.asarray(centers(ANCHORS)), len(ANCHORS)
    shares = [
        np.asarray(iof(ANCHORS[None], scale(boxes, side)[:, None])) for side in (core, shadow)
    ]
    rows, ignored = np.full(n, BACKGROUND), np.zeros((n, num_classes), bool)
    by_size = np.argsort(-np.asarray(areas(boxes)), kind="stable")
    for anchor, (x, y) in enumerate(middles):
        in_core = []
        for row in by_size:
            left, top, right, bottom = np.asarray(boxes)[row]
            inside = left < x < right and top < y < bottom
            if inside and shares[0][row, anchor] > 0.01:
                in_core.append(row)
            elif shares[1][row, anchor] > 0.01:
                ignored[anchor, classes[row]] = True
        if in_core:
            *lost, rows[anchor] = in_core
            ignored[anchor, classes[lost]] = True
            if ignored[anchor, classes[rows[anchor]]]:
                rows[anchor] = BACKGROUND
    return rows, ignored


def test_by_center_equals_a_plain_loop(boxes, rng):
    classes = rng.integers(0, 5, NUMBER).astype("i4")
    options = {"core": 0.4, "shadow": 0.7}
    found = by_center(ANCHORS, boxes, jnp.asarray(classes), jnp.ones(NUMBER, bool), 5, **options)
    rows, ignored = plain_center(boxes, classes, 5, **options)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_array_equal(found.ignored, ignored)
    assert (rows >= 0).sum() > 20
    assert ignored.sum() > 20


ASSIGNERS = {
    "overlap": lambda boxes, valid, among: by_overlap(ANCHORS, boxes, valid, among=among),
    "statistics": lambda boxes, valid, among: by_statistics(LEVELS, boxes, valid, among=among),
    "center": lambda boxes, valid, among: by_center(
        ANCHORS, boxes, jnp.arange(len(boxes)) % 3, valid, 3, among=among, core=0.5
    ),
}


@pytest.mark.parametrize("name", ASSIGNERS)
def test_more_slots_and_compilation_change_nothing(boxes, name):
    assign, among = ASSIGNERS[name], jnp.arange(len(ANCHORS)) % 5 > 0
    few = assign(boxes, jnp.ones(NUMBER, bool), among)
    more = jnp.concatenate([boxes, jnp.tile(boxes[:1], (20, 1))])
    assign = jax.jit(assign)
    many = assign(more, jnp.arange(NUMBER + 20) < NUMBER, among)
    jax.tree.map(np.testing.assert_array_equal, few, many)
    rows = np.asarray(jax.tree.leaves(few)[0])
    assert (rows[np.asarray(~among)] == IGNORED).all()
    assert (rows >= 0).any()


@pytest.mark.parametrize("name", ASSIGNERS)
@pytest.mark.parametrize("slots", [0, 3])
def test_without_ground_truth_all_is_background(name, slots):
    boxes, valid = jnp.zeros((slots, 4)), jnp.zeros(slots, bool)
    found = ASSIGNERS[name](boxes, valid, jnp.ones(len(ANCHORS), bool))
    rows = jax.tree.leaves(found)[0]
    np.testing.assert_array_equal(rows, BACKGROUND)
