"""Segmentation scores and the linear probe."""

import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.metrics.linear_probe import linear_probe, patch_labels
from vadapt.metrics.segmentation import confusion_matrix, iou_per_class, mean_iou


def test_confusion_counts_pairs_and_ignores_255(rng):
    target = rng.integers(0, 4, 500)
    target[::7] = 255
    prediction = rng.integers(0, 4, 500)
    found = np.asarray(confusion_matrix(jnp.asarray(prediction), jnp.asarray(target), 4))
    expected = np.zeros((4, 4), int)
    for t, p in zip(target, prediction, strict=True):
        if t != 255:
            expected[t, p] += 1
    np.testing.assert_array_equal(found, expected)


def test_iou_of_absent_classes_is_left_out():
    confusion = np.array([[6, 2, 0], [0, 4, 0], [0, 0, 0]])
    np.testing.assert_allclose(iou_per_class(confusion), [6 / 8, 4 / 6, np.nan])
    assert mean_iou(confusion) == pytest.approx((6 / 8 + 4 / 6) / 2)


def test_patch_labels_are_majorities():
    mask = np.array([[0, 1, 2, 2], [1, 1, 2, 0], [255, 255, 3, 1], [255, 255, 1, 255]])[None]
    np.testing.assert_array_equal(patch_labels(mask, 2, 4)[0], [[1, 2], [255, 1]])


def test_probe_reads_what_is_linear_and_not_what_is_absent(rng):
    centres = rng.normal(size=(3, 8)) * 4
    labels = rng.integers(0, 3, 600)
    features = (centres[labels] + rng.normal(size=(600, 8))).astype(np.float32)
    labels[:30] = 255
    halves = features[:300], labels[:300], features[300:], labels[300:]
    assert linear_probe(*halves, num_classes=3)["miou"] > 0.95
    shuffled = rng.permutation(labels[300:])
    assert linear_probe(*halves[:3], shuffled, num_classes=3)["miou"] < 0.4


def test_probe_does_not_depend_on_the_scale_of_a_feature(rng):
    features = rng.normal(size=(200, 4)).astype(np.float32)
    labels = (features[:, 0] > 0).astype(int)
    scaled = features * np.array([1e3, 1e-3, 1, 1], np.float32) + 5
    a = linear_probe(features[:100], labels[:100], features[100:], labels[100:], num_classes=2)
    b = linear_probe(scaled[:100], labels[:100], scaled[100:], labels[100:], num_classes=2)
    assert a["miou"] == pytest.approx(b["miou"], abs=0.02)
