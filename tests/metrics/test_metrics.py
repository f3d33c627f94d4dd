"""Segmentation scores and the linear probe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapt import sharding
from vadapt.errors import ConfigError
from vadapt.metrics import linear_probe
from vadapt.metrics.linear_probe import (
    DECAYS,
    fit_chosen_probe,
    fit_probe,
    patch_labels,
    probe_confusion,
    probe_scores,
)
from vadapt.metrics.segmentation import (
    Confusion,
    accuracy_per_class,
    best_class,
    confusion_matrix,
    domain_scores,
    image_mean_iou,
    iou_per_class,
    mean_iou,
)


def test_confusion_counts_pairs_and_ignores_255(rng):
    target = rng.integers(0, 4, 500)
    target[::7] = 255
    prediction = rng.integers(0, 4, 500)
    found = np.asarray(confusion_matrix(jnp.asarray(prediction), jnp.asarray(target), 4))
    expected = np.zeros((4, 5), int)  # a column more, for predictions that are no class
    for t, p in zip(target, prediction, strict=True):
        if t != 255:
            expected[t, p] += 1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("wrong", [2, 3, 255, -1])
def test_a_prediction_that_is_no_class_is_a_miss_and_no_hit_of_another(wrong):
    target = np.array([[0, 0, 1, 1, 255]])
    found = np.array([[0, wrong, 1, 1, wrong]])
    counts = np.asarray(confusion_matrix(jnp.asarray(found), jnp.asarray(target), 2))
    np.testing.assert_array_equal(counts, [[1, 0, 1], [0, 2, 0]])
    streamed = Confusion.empty(2).update(jnp.asarray(found), jnp.asarray(target)).counts()
    np.testing.assert_array_equal(streamed, counts)
    scores = domain_scores({"set": counts})
    assert scores == pytest.approx(
        {f"{name}/{key}": 75.0 for name in ("set", "mean") for key in ("miou", "macc", "aacc")}
    )


def test_a_pixel_with_a_score_that_is_nan_is_of_no_class():
    scores = jnp.array([[0.0, 2.0, 1.0], [jnp.nan, 0.0, 1.0], [jnp.nan] * 3, [0.0, 1.0, jnp.inf]])
    assert best_class(scores).tolist() == [1, -1, -1, 2]


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
    assert probe_scores(probe_confusion(*halves, num_classes=3))["miou"] > 0.95
    shuffled = rng.permutation(labels[300:])
    assert probe_scores(probe_confusion(*halves[:3], shuffled, num_classes=3))["miou"] < 0.4


def test_features_that_are_not_finite_have_no_score():
    features = np.full((4, 2), np.nan, np.float32)
    labels = np.zeros(4, int)
    sides = features, labels, features, labels
    scores = probe_scores(probe_confusion(*sides, num_classes=2, steps=1))
    assert (scores["miou"], scores["accuracy"]) == (0.0, 0.0)


def test_probe_does_not_depend_on_the_scale_of_a_feature(rng):
    # Of the sizes above, for which the probe is compiled already.
    features = rng.normal(size=(600, 8)).astype(np.float32)
    labels = (features[:, 0] > 0).astype(int) + (features[:, 1] > 1)
    scaled = features * np.array([1e3, 1e-3, 1, 1] * 2, np.float32) + 5
    a, b = (
        probe_scores(probe_confusion(x[:300], labels[:300], x[300:], labels[300:], num_classes=3))
        for x in (features, scaled)
    )
    assert a["miou"] == pytest.approx(b["miou"], abs=0.02)


def test_streamed_counts_are_those_of_all_at_once(rng):
    target = rng.integers(0, 5, (6, 7, 8)).astype(np.uint8)
    target[rng.random(target.shape) < 0.2] = 255
    prediction = rng.integers(0, 5, target.shape).astype(np.int32)
    update = jax.jit(Confusion.update)
    state = Confusion.empty(5)
    for start in (0, 4):  # the second batch is filled up with rows that do not count
        rows = np.minimum(np.arange(start, start + 4), 5)
        valid = jnp.asarray(np.arange(start, start + 4) < 6)
        state = update(state, jnp.asarray(prediction[rows]), jnp.asarray(target[rows]), valid)
    whole = confusion_matrix(jnp.asarray(prediction), jnp.asarray(target), 5)
    np.testing.assert_array_equal(state.counts(), whole)


def test_counts_go_beyond_32_bits():
    state = Confusion.empty(2)._replace(low=jnp.full((2, 3), 2**32 - 1, jnp.uint32))
    ones = jnp.ones((1, 3), jnp.int32)
    counts = state.update(ones, ones).update(ones, ones).counts()
    assert counts.dtype == np.int64
    assert counts[1, 1] == 2**32 + 5
    assert counts[0, 0] == 2**32 - 1


def test_devices_count_their_part_and_only_counts_travel():
    mesh = sharding.make_mesh()
    rows = sharding.batch_sharding(mesh)
    state = jax.tree.map(
        lambda part: jax.ShapeDtypeStruct(
            part.shape, part.dtype, sharding=sharding.replicated(mesh)
        ),
        Confusion.empty(3),
    )
    maps = jax.ShapeDtypeStruct((8, 16, 16), jnp.int32, sharding=rows)
    valid = jax.ShapeDtypeStruct((8,), jnp.bool_, sharding=rows)
    program = jax.jit(Confusion.update).lower(state, maps, maps, valid).compile().as_text()
    assert " all-reduce(" in program
    assert " all-gather(" not in program


def test_scores_of_domains_and_their_mean():
    confusions = {
        "day": np.array([[6, 2], [0, 4]]),
        "night": np.array([[1, 0], [3, 0]]),
        "empty": np.zeros((2, 2), int),
    }
    scores = domain_scores(confusions, ["day", "night"], decimals=2)
    assert scores["day/miou"] == round(100 * (6 / 8 + 4 / 6) / 2, 2)
    assert scores["day/macc"] == 87.5
    assert scores["night/macc"] == 50.0
    assert scores["night/aacc"] == 25.0
    assert scores["mean/macc"] == pytest.approx(68.75)
    assert np.isnan(scores["empty/miou"])
    assert np.isnan(domain_scores(confusions)["mean/miou"])
    with pytest.raises(ConfigError, match="no scores of data set 'dya'; nearest: 'day'"):
        domain_scores(confusions, ["dya"])


def test_classes_and_images_have_scores_of_their_own():
    matrix = np.array([[3, 0, 1, 0], [0, 0, 0, 0], [1, 1, 2, 4]])  # the last column: no class
    np.testing.assert_array_equal(accuracy_per_class(matrix), [3 / 4, np.nan, 2 / 8])
    np.testing.assert_array_equal(iou_per_class(matrix), [3 / 5, 0, 2 / 9])
    target = jnp.asarray([[0, 0, 2, 255], [255] * 4, [1, 1, 1, 1], [0, 0, 1, 2]], jnp.uint8)
    found = jnp.asarray([[0, 1, 2, 0], [0, 1, 2, 0], [255] * 4, [0, 0, 1, 2]], jnp.uint8)
    # Class 1 is nowhere in the first and yet predicted; 255 is no class, as where scores are NaN.
    expected = [(1 / 2 + 0 + 1) / 3, np.nan, 0, 1]
    np.testing.assert_allclose(image_mean_iou(found, target, 3), expected, rtol=1e-6)


def test_the_weight_decay_is_that_of_the_best_share_of_held_out_images(rng):
    labels = np.arange(60) % 3
    # More numbers than images, nearly all of them noise: little decay learns the noise.
    x = rng.normal(size=(60, 90)).astype(np.float32)
    x[:, :3] += 1.2 * np.eye(3)[labels]
    held = linear_probe._held_out(labels, 3)
    assert np.flatnonzero(held).tolist() == [*range(12, 15), *range(27, 30), *range(42, 45),
                                             *range(57, 60)]  # fmt: skip
    shares = []
    for decay in DECAYS:
        kept = np.where(held, 3, labels)
        probe = fit_probe(x, kept, num_classes=3, weight_decay=decay)
        shares.append((probe.logits(x[held]).argmax(1) == labels[held]).mean())
    probe, decay = fit_chosen_probe(x, labels, num_classes=3)
    assert decay == DECAYS[shares.index(max(shares))] > 1e-4
    again = fit_probe(x, labels, num_classes=3, weight_decay=decay)
    np.testing.assert_array_equal(probe.logits(x), again.logits(x))


def test_one_image_of_a_class_is_never_held_out():
    labels = np.asarray([0, 1, 1, 2, 9, 9])  # 9: of no class
    assert linear_probe._held_out(labels, 3).tolist() == [False, False, True] + 3 * [False]
    x = np.eye(6, dtype=np.float32)
    assert fit_chosen_probe(x[:2], labels[:2], num_classes=2)[1] == 1e-4
