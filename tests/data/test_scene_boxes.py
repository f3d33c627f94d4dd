"""Scenes with boxes: several a picture, what is too small ignored, and their truth."""

import numpy as np
import pytest

from vadapt.data.scene_boxes import SceneBoxes
from vadapt.data.scenes import CLASSES, THINGS, SceneOptions, Scenes
from vadapt.errors import ConfigError


def test_a_picture_is_put_together_of_scenes_with_their_objects():
    options = SceneOptions(height=48, width=64)
    source = SceneBoxes(3, mosaic=2, seed=5, options=options)
    parts = Scenes(
        12,
        fields=("image", "boxes_xyxy", "box_classes"),
        seed=5,
        options=SceneOptions(height=24, width=32),
    )
    record = source[1]
    image, boxes, classes = record["image"], [], []
    for i, (top, left) in enumerate(((0, 0), (0, 32), (24, 0), (24, 32))):
        part = parts[4 + i]
        np.testing.assert_array_equal(image[top : top + 24, left : left + 32], part["image"])
        boxes += (part["boxes_xyxy"] + np.array([left, top, left, top])).tolist()
        classes += [THINGS.index(CLASSES[kind]) for kind in part["box_classes"]]
    np.testing.assert_array_equal(record["boxes_xyxy"], boxes)
    assert record["box_classes"].tolist() == classes
    sides = record["boxes_xyxy"][:, 2:] - record["boxes_xyxy"][:, :2]
    np.testing.assert_array_equal(record["box_ignored"], (sides < 4).any(axis=1))
    assert record["box_ignored"].any()
    assert not record["box_ignored"].all()
    assert source[-2]["boxes_xyxy"].tolist() == record["boxes_xyxy"].tolist()


def test_the_truth_is_that_of_the_pictures():
    source = SceneBoxes(4, mosaic=2, options=SceneOptions(height=64, width=64))
    truth = source.truth([3, 1])
    assert truth.images.tolist() == sorted(truth.images.tolist(), reverse=True)
    for number in (1, 3):
        record, mine = source[number], truth.rows(truth.images == number)
        np.testing.assert_array_equal(mine.boxes_xyxy, record["boxes_xyxy"])
        np.testing.assert_array_equal(mine.classes, record["box_classes"])
        np.testing.assert_array_equal(mine.ignored, record["box_ignored"])
    assert len(source.truth().images) > len(truth.images)
    assert not len(source.regions().images)
    assert source.identity() != SceneBoxes(4, options=SceneOptions()).identity()


def test_sides_that_are_not_cut_evenly_are_refused():
    with pytest.raises(ConfigError, match=r"64x65 pixels .* 2x2 scenes"):
        SceneBoxes(1, mosaic=2, options=SceneOptions(height=64, width=65))
