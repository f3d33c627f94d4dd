"""Tiles cover a picture, have the boxes that lie in them, and merge to one set of detections."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadapt.data.tiling import (
    boxes_in_tile,
    greedy_nms,
    keep_by_area,
    keep_by_side,
    merge_tiles,
    tile_corners,
)
from vadapt.errors import ConfigError

sides = st.integers(1, 90)


@settings(max_examples=80, deadline=None)
@given(
    image=st.tuples(sides, sides),
    tile=st.integers(3, 40),
    share=st.floats(0, 0.9),
    fixed=st.booleans(),
)
def test_tiles_cover_every_pixel_and_share_what_they_should(image, tile, share, fixed):
    overlap = int(tile * share)
    corners = tile_corners(image, (tile, tile), (overlap, overlap), fixed=fixed)
    covered = np.zeros(image, bool)
    for left, top, right, bottom in corners:
        assert 0 <= left < right <= image[1]
        assert 0 <= top < bottom <= image[0]
        covered[top:bottom, left:right] = True
        if fixed:
            assert (bottom - top, right - left) == (min(tile, image[0]), min(tile, image[1]))
    assert covered.all()
    lefts = np.unique(corners[:, 0])
    assert (np.diff(lefts) <= tile - overlap).all()


def test_the_last_tile_ends_where_the_image_does():
    corners = tile_corners((10, 25), (10, 10), (2, 2), fixed=False)
    assert corners[:, [0, 2]].tolist() == [[0, 10], [8, 18], [16, 25]]
    with pytest.raises(ConfigError, match="less is shared"):
        tile_corners((10, 10), (4, 4), (4, 0))


def test_a_box_on_the_edge_stays_by_the_share_of_it_inside():
    tile = (100, 0, 200, 100)
    boxes = [[90, 10, 110, 30], [95, 10, 105, 30], [120, 20, 130, 40], [99, 0, 101, 50]]
    half, places = boxes_in_tile(np.array(boxes, float), tile, keep_by_side(0.7))
    assert places.tolist() == [0, 1, 2, 3]  # of half the area the root is 0.707
    assert half[0].tolist() == [0, 10, 10, 30]
    _, places = boxes_in_tile(np.array(boxes, float), tile, keep_by_side(0.71))
    assert places.tolist() == [2]
    _, places = boxes_in_tile(np.array(boxes, float), tile, keep_by_area(0.3))
    assert places.tolist() == [0, 1, 2]  # one pixel of width is a speck
    ignored = np.array([False, False, False, True])
    _, places = boxes_in_tile(np.array(boxes, float), tile, keep_by_area(0.6), ignored)
    assert places.tolist() == [2, 3]


def test_boxes_without_an_area_or_a_part_in_the_tile_are_in_none():
    boxes = np.array([[5.0, 5, 5, 9], [50, 50, 60, 60]])
    for rule in (keep_by_side(0.0), keep_by_area(0.0, -1, -1)):
        assert not len(boxes_in_tile(boxes, (0, 0, 20, 20), rule, np.ones(2, bool))[1])


def test_one_object_in_two_tiles_is_one_detection():
    corners = tile_corners((20, 34), (20, 20), (6, 6))
    seen = [np.array([[14.0, 2, 20, 8], [0, 0, 4, 4]]), np.array([[0.0, 2, 6, 8]])]
    merged, places = merge_tiles(seen, [np.array([0.6, 0.5]), np.array([0.9])], corners)
    assert places.tolist() == [2, 1]
    assert merged.tolist() == [[14, 2, 20, 8], [0, 0, 4, 4]]
    nothing = merge_tiles([np.zeros((0, 4))] * 2, [np.zeros(0)] * 2, corners)
    assert len(nothing[0]) == len(nothing[1]) == 0


def test_extents_with_one_more_pixel_overlap_more():
    boxes = np.array([[0.0, 0, 3, 3], [2, 0, 5, 3]])  # 3 of 15, and 8 of 24 by legacy extents
    scores = np.array([0.5, 0.5])
    assert greedy_nms(boxes, scores, 1 / 3).tolist() == [0, 1]
    assert greedy_nms(boxes, scores, 1 / 3, extra=1.0).tolist() == [0]
