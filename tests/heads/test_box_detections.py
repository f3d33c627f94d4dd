"""Detections of dense heads: shapes, borders, ranking, centerness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from tests.heads.tiny_boxes import CLASSES, NAMES, SIZE, STRIDES, made, maps, whole
from vadapt.boxes.geometry import ImageSizes


def detections(head, maps, sizes, **options):
    return head.detect(head(maps), sizes, **options)


@pytest.mark.parametrize("name", NAMES)
def test_detections_are_of_one_shape_inside_the_image_and_best_first(name):
    sizes = ImageSizes(jnp.tile(jnp.asarray([SIZE]), (4, 1)), jnp.asarray([[60, 80]] * 4))
    found = compiled.run(detections, made(name), maps(), sizes, most=30)
    assert found.boxes.shape == (4, 30, 4)
    assert found.valid.any(axis=1).all()
    assert (jnp.diff(found.scores, axis=1) <= 0).all()
    assert (found.boxes >= 0).all()
    assert (found.boxes <= jnp.asarray([80.0, 60, 80, 60])[None, None]).all()
    assert (found.scores[found.valid] > 0.05).all()
    halved = compiled.run(
        lambda head, maps, sizes, scales: detections(head, maps, sizes, scales=scales, most=30),
        *(made(name), maps(), sizes, jnp.full((4, 2), 2.0)),
    )
    np.testing.assert_allclose(halved.boxes, found.boxes / 2, rtol=1e-6)


def test_detections_are_the_same_uncompiled():
    head, one = made("fsaf"), tuple(x[:1] for x in maps())
    found = compiled.run(detections, head, one, whole(1), most=3)
    plain = detections(head, one, whole(1), most=3)
    np.testing.assert_array_equal(found.classes, plain.classes)
    np.testing.assert_allclose(found.boxes, plain.boxes, rtol=1e-4, atol=1e-4)


def test_the_best_pairs_or_all_classes_of_the_best_boxes():
    head, options = made("retinanet"), {"most": 60, "overlap": 1.0}
    every = compiled.run(detections, head, maps(), whole(), **options)
    pairs = compiled.run(detections, head, maps(), whole(), by_pair=True, before=10**6, **options)
    np.testing.assert_array_equal(every.scores, pairs.scores)
    few = compiled.run(detections, head, maps(), whole(), by_pair=True, before=4, **options)
    assert (few.valid.sum(axis=1) == 4 * len(STRIDES)).all()
    boxes = compiled.run(detections, head, maps(), whole(), before=4, **options)
    assert (boxes.valid.sum(axis=1) > 4 * len(STRIDES)).all()
    np.testing.assert_array_equal(boxes.scores[:, 0], few.scores[:, 0])


def test_centerness_multiplies_scores_if_asked():
    plain, by_middle = made("atss"), made("atss", by_centerness=True)
    options = {"most": 50, "overlap": 1.0}
    found = compiled.run(detections, by_middle, maps(), whole(), **options)
    predictions = compiled.run("__call__", plain, maps())
    flat = [
        np.concatenate([np.asarray(jax.nn.sigmoid(x)).reshape(4, -1, n) for x in kind], axis=1)
        for kind, n in ((predictions.classes, CLASSES), (predictions.centerness, 1))
    ]
    scores = np.where(flat[0] > 0.05, flat[0] * flat[1], 0).reshape(4, -1)
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1)[:, :50], rtol=1e-5)
