"""Boxes survive their codes; anchors stand where they should."""

import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.boxes import geometry
from vadapt.boxes.anchors import AnchorGrid
from vadapt.boxes.coders import (
    DeltaCoder,
    TBLRCoder,
    decode_distances,
    encode_distances,
    expected_distances,
)


def random_boxes(rng, number, size=100.0):
    first = rng.uniform(0, size, (number, 2))
    return jnp.asarray(np.concatenate([first, first + rng.uniform(2, 40, (number, 2))], 1), "f4")


@pytest.mark.parametrize(
    "coder",
    [DeltaCoder(), DeltaCoder((0.1, 0, 0, -0.1), (0.1, 0.1, 0.2, 0.2)), TBLRCoder(3.0)],
)
def test_boxes_survive_their_codes(rng, coder):
    anchors, boxes = random_boxes(rng, 50), random_boxes(rng, 50)
    found = coder.decode(anchors, coder.encode(anchors, boxes))
    np.testing.assert_allclose(found, boxes, atol=2e-4)


def test_boxes_survive_distances_and_these_their_distribution(rng):
    boxes = random_boxes(rng, 50)
    points = geometry.centers(boxes) + 1.0
    distances = encode_distances(points, boxes)
    np.testing.assert_allclose(decode_distances(points, distances), boxes, atol=1e-4)
    logits = jnp.where(jnp.arange(9)[None] == 5, 50.0, 0.0)
    np.testing.assert_allclose(expected_distances(jnp.tile(logits, (2, 4)), 9), 5.0, atol=1e-5)


def test_wild_codes_stay_finite():
    anchors = jnp.asarray([[0.0, 0, 10, 10]])
    found = DeltaCoder().decode(anchors, jnp.asarray([[0.0, 0.0, 1e4, -1e4]]))
    width, height = 10 * 62.5, 10 / 62.5
    middle = [5 - width / 2, 5 - height / 2, 5 + width / 2, 5 + height / 2]
    np.testing.assert_allclose(found[0], middle, rtol=1e-5)


def test_giou_is_negative_for_distant_boxes_and_one_for_equal_ones():
    a = jnp.asarray([[0.0, 0, 1, 1], [0, 0, 2, 2]])
    b = jnp.asarray([[3.0, 0, 4, 1], [0, 0, 2, 2]])
    np.testing.assert_allclose(geometry.giou(a, b), [-0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(geometry.iou(a, b), [0.0, 1.0], atol=1e-6)


def test_anchors_come_by_cell_ratio_and_scale():
    grid = AnchorGrid((8, 16), scales=(1.0, 2.0), ratios=(1.0, 4.0))
    first, second = grid.levels([(2, 3), (1, 2)])
    assert first.shape == (2 * 3 * 4, 4)
    assert grid.per_cell == 4
    np.testing.assert_allclose(first[:4, 2:], [[4, 4], [8, 8], [2, 8], [4, 16]])
    np.testing.assert_allclose(geometry.centers(first)[::4][:4], [[0, 0], [8, 0], [16, 0], [0, 8]])
    np.testing.assert_allclose(geometry.centers(second)[::4], [[0, 0], [16, 0]])


def test_cells_that_an_image_does_not_reach_have_no_anchors():
    grid = AnchorGrid((8,), scales=(1.0,), ratios=(1.0, 2.0))
    inside = grid.inside([(3, 4)], jnp.asarray([[9, 17], [24, 32]]))[0].reshape(2, 3, 4, 2)
    expected = np.zeros((3, 4), bool)
    expected[:2, :3] = True
    np.testing.assert_array_equal(inside[0], np.repeat(expected[..., None], 2, 2))
    assert inside[1].all()
