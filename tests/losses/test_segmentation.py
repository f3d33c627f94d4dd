"""Losses of per-pixel scores: what is ignored, what weighs, what must not pass in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.errors import ShapeError
from vadapt.losses.segmentation import cross_entropy, pixel_cross_entropy


def case(rng):
    logits = jnp.asarray(rng.normal(size=(2, 8, 12, 5)), jnp.float32)
    return logits, jnp.asarray(rng.integers(0, 5, size=(2, 8, 12)), jnp.int32)


def test_uniform_scores_cost_the_logarithm_of_the_classes(rng):
    _, labels = case(rng)
    np.testing.assert_allclose(
        cross_entropy(jnp.zeros((2, 8, 12, 5)), labels), np.log(5), rtol=1e-6
    )


def test_ignored_pixels_neither_count_nor_give_gradients(rng):
    logits, labels = case(rng)
    half = labels.at[:, :, 6:].set(255)
    loss, gradient = jax.value_and_grad(cross_entropy)(logits, half)
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


def test_a_label_that_is_no_class_is_not_learned_from_in_silence(rng):
    logits, labels = case(rng)
    for wrong in (5, -1, 254):
        assert jnp.isnan(cross_entropy(logits, labels.at[1, 2, 3].set(wrong)))


def test_losses_of_bfloat16_scores_are_float32(rng):
    logits, labels = case(rng)
    loss = cross_entropy(logits.astype(jnp.bfloat16), labels)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, cross_entropy(logits, labels), rtol=1e-2)


def test_scores_of_another_size_are_refused(rng):
    logits, labels = case(rng)
    with pytest.raises(ShapeError, match=r"logits of \(4, 6\) .* labels of \(8, 12\); resize"):
        cross_entropy(logits[:, ::2, ::2], labels)


def test_scores_are_chosen_by_comparison_and_nothing_is_scattered(rng):
    """A scatter of one number a pixel is slow on TPUs, and writes zeros for the rest."""
    logits, labels = case(rng)
    program = jax.jit(jax.value_and_grad(cross_entropy)).lower(logits, labels).as_text()
    assert "stablehlo.scatter" not in program
    assert "stablehlo.gather" not in program


def test_losses_and_gradients_are_those_of_the_log_softmax(rng):
    logits, labels = case(rng)
    labels = labels.at[0, :2].set(255)
    valid = float((labels != 255).sum())

    def plain(logits):
        chosen = jnp.take_along_axis(
            jax.nn.log_softmax(logits), jnp.minimum(labels, 4)[..., None], axis=-1
        )
        return jnp.where(labels == 255, 0.0, -chosen[..., 0]).sum() / valid

    for scale in (1.0, 1e4):  # of which the exponentials overflow if nothing is taken off
        found = jax.value_and_grad(cross_entropy)(scale * logits, labels)
        wanted = jax.value_and_grad(plain)(scale * logits)
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
        np.testing.assert_allclose(found[1], wanted[1], atol=1e-8)
