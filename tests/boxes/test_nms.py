"""Suppression equals a plain greedy loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.boxes.test_coders import random_boxes
from vadapt.boxes.geometry import iou
from vadapt.boxes.nms import suppress


def plain(boxes, scores, threshold, least, most):
    """Pairs of box and class that stay, best first; equal scores by box, then by class."""
    overlaps = np.asarray(iou(boxes[:, None], boxes[None]))
    order = np.argsort(-scores.reshape(-1), kind="stable")
    kept = []
    for row, k in zip(*np.unravel_index(order, scores.shape), strict=True):
        alone = all(k != other or overlaps[row, at] <= threshold for at, other in kept)
        if scores[row, k] > least and alone:
            kept.append((row, k))
    return kept[:most]


@pytest.mark.parametrize(("most", "levels"), [(20, 5), (200, 5), (40, 1000)])
def test_equals_a_plain_loop_also_where_scores_are_equal(rng, most, levels):
    boxes = random_boxes(rng, 60, 40.0)
    scores = (rng.integers(0, levels, (60, 3)) / levels).astype("f4")
    options = {"threshold": 0.3, "least": 0.2, "most": most}
    found = jax.jit(lambda b, s: suppress(b, s, **options))(boxes, jnp.asarray(scores))
    expected = plain(boxes, scores, 0.3, 0.2, most)
    number = len(expected)
    assert number == most or (number < most and not found.valid[number:].any())
    assert found.valid[:number].all()
    pairs = list(zip(found.rows[:number].tolist(), found.classes[:number].tolist(), strict=True))
    assert pairs == expected
    np.testing.assert_array_equal(found.boxes[:number], boxes[np.array(expected)[:, 0]])
    np.testing.assert_array_equal(found.boxes[number:], 0.0)
    np.testing.assert_array_equal(found.scores[:number], [scores[pair] for pair in expected])


def test_images_are_by_themselves_and_boxes_without_area_come_once(rng):
    boxes = jnp.stack([random_boxes(rng, 9), jnp.zeros((9, 4))])
    scores = jnp.asarray(rng.uniform(0.1, 1, (2, 9, 2)), "f4")
    found = suppress(boxes, scores, threshold=0.5, least=0.0, most=30)
    for i in range(2):
        alone = suppress(boxes[i], scores[i], threshold=0.5, least=0.0, most=30)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x, i=i: x[i], found), alone)
    assert found.valid[1].sum() == 18
