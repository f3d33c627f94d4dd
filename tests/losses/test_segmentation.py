"""Losses of per-pixel scores: what is ignored, what weighs, what must not pass in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.losses.segmentation import cross_entropy, pixel_cross_entropy, resize_bilinear


def case(rng):
    logits = jnp.asarray(rng.normal(size=(2, 4, 6, 5)), jnp.float32)
    return logits, jnp.asarray(rng.integers(0, 5, size=(2, 8, 12)), jnp.int32)


def test_uniform_scores_cost_the_logarithm_of_the_classes(rng):
    _, labels = case(rng)
    np.testing.assert_allclose(cross_entropy(jnp.zeros((2, 4, 6, 5)), labels), np.log(5), rtol=1e-6)


@pytest.mark.parametrize("size", [(7, 9), (2, 3), (1, 12), (4, 6)])
def test_aligned_corners_keep_corners_and_straight_lines(rng, size):
    rows, columns = (np.linspace(-1.0, 1.0, side) for side in (4, 6))
    x = jnp.asarray(3 * rows[:, None] - 2 * columns + 0.5, jnp.float32)[None, :, :, None]
    # One row or column is the first.
    rows, columns = (np.linspace(-1.0, 1.0 if side > 1 else -1.0, side) for side in size)
    found = resize_bilinear(x, size, align_corners=True)[0, :, :, 0]
    np.testing.assert_allclose(found, 3 * rows[:, None] - 2 * columns + 0.5, atol=1e-6)
    logits, labels = case(rng)
    loss = cross_entropy(resize_bilinear(logits, (8, 12), align_corners=True), labels)
    np.testing.assert_allclose(cross_entropy(logits, labels, align_corners=True), loss, rtol=1e-6)
    assert abs(loss - cross_entropy(logits, labels)) > 1e-3


def test_ignored_pixels_neither_count_nor_give_gradients(rng):
    logits, labels = case(rng)
    half = labels.at[:, :, 6:].set(255)
    loss, gradient = jax.value_and_grad(cross_entropy)(resize_bilinear(logits, (8, 12)), half)
    kept = pixel_cross_entropy(logits, labels)[:, :, :6]
    np.testing.assert_allclose(loss, kept.mean(), rtol=1e-6)
    assert not gradient[:, :, 6:].any()
    np.testing.assert_allclose(cross_entropy(logits, half.at[half == 255].set(9), ignore=9), loss)


def test_a_batch_without_valid_pixels_costs_nothing(rng):
    logits, labels = case(rng)
    loss, gradient = jax.value_and_grad(cross_entropy)(logits, jnp.full_like(labels, 255))
    assert loss == 0.0
    assert not gradient.any()


def test_weights_scale_terms_and_not_the_number_of_pixels(rng):
    logits, labels = case(rng)
    labels = labels.at[0, 0].set(255)
    each, valid = pixel_cross_entropy(logits, labels), labels != 255
    by_class = jnp.asarray([0.0, 1.0, 2.0, 0.5, 3.0])
    by_pixel = jnp.asarray(rng.uniform(size=labels.shape), jnp.float32)
    found = cross_entropy(logits, labels, class_weights=by_class, pixel_weights=by_pixel)
    factors = np.where(valid, np.asarray(by_class)[np.where(valid, labels, 0)] * by_pixel, 0)
    expected = (np.asarray(each) * factors).sum() / np.asarray(valid).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    half = cross_entropy(logits, labels, pixel_weights=jnp.full(labels.shape, 0.5))
    np.testing.assert_allclose(half, cross_entropy(logits, labels) / 2, rtol=1e-6)


def test_a_label_that_is_no_class_is_not_learnt_from_in_silence(rng):
    logits, labels = case(rng)
    for wrong in (5, -1, 254):
        assert jnp.isnan(cross_entropy(logits, labels.at[1, 2, 3].set(wrong)))


def test_bfloat16_scores_are_judged_in_float32(rng):
    logits, labels = case(rng)
    loss = cross_entropy(logits.astype(jnp.bfloat16), labels)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, cross_entropy(logits, labels), rtol=1e-2)
    assert resize_bilinear(logits.astype(jnp.bfloat16), (3, 3)).dtype == jnp.bfloat16
