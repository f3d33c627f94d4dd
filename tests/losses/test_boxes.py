"""Losses of boxes against plain definitions, and where they are easily not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.losses import boxes as losses


def test_focal_without_focus_is_cross_entropy(rng):
    logits = jnp.asarray(rng.normal(size=(6, 3)), "f4")
    labels = jnp.asarray([0, 1, 2, 3, -1, 1])
    target = np.eye(4)[[0, 1, 2, 3, 3, 1]][:, :3]
    share = 1 / (1 + np.exp(-np.asarray(logits, "f8")))
    entropy = -np.log(np.where(target > 0, share, 1 - share))
    found = losses.focal(logits, labels, alpha=0.5, gamma=0.0)
    np.testing.assert_allclose(found, 0.5 * entropy, rtol=1e-5)
    missed = np.where(target > 0, 1 - share, share)
    weight = np.where(target > 0, 0.25, 0.75)
    np.testing.assert_allclose(
        losses.focal(logits, labels), weight * missed**2 * entropy, rtol=1e-5
    )


def test_quality_focal_is_least_at_the_quality():
    quality = 0.7
    at = jnp.log(quality / (1 - quality))
    logits = jnp.asarray([[at - 0.5], [at], [at + 0.5]])
    found = losses.quality_focal(logits, jnp.zeros(3, jnp.int32), jnp.full(3, quality))
    assert found[1, 0] < 1e-12 < min(found[0, 0], found[2, 0])


@pytest.mark.parametrize("target", [0.0, 2.3, 5.9, 6.0])
def test_distribution_focal_is_the_entropy_at_the_two_neighbors(rng, target):
    logits = jnp.asarray(rng.normal(size=(1, 8)), "f4")
    logs = np.log(np.exp(logits[0]) / np.exp(logits[0]).sum())
    low = int(target)
    expected = -((low + 1 - target) * logs[low] + (target - low) * logs[low + 1])
    found = losses.distribution_focal(logits, jnp.asarray([target]))
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


def test_smooth_l1_meets_l1():
    found = losses.smooth_l1(jnp.asarray([0.05, 0.1, 2.0]), jnp.zeros(3), beta=0.1)
    np.testing.assert_allclose(found, [0.0125, 0.05, 1.95], rtol=1e-5)


@pytest.mark.parametrize("loss", [losses.giou_loss, losses.iou_loss])
def test_boxes_without_area_or_overlap_have_finite_gradients(loss):
    found = jnp.asarray([[0.0, 0, 0, 0], [0, 0, 4, 4], [5, 5, 5, 9]])
    target = jnp.asarray([[0.0, 0, 0, 0], [9, 9, 12, 12], [5, 5, 5, 9]])
    value, slope = jax.value_and_grad(lambda x: loss(x, target).sum())(found)
    assert jnp.isfinite(value)
    assert jnp.isfinite(slope).all()


@pytest.mark.parametrize("extreme", [-200.0, 200.0])
def test_extreme_logits_have_finite_losses_and_gradients(extreme):
    logits, labels = jnp.full((2, 3), extreme), jnp.asarray([1, 3])

    def total(logits):
        quality = losses.quality_focal(logits, labels, jnp.asarray([1.0, 0.0]))
        return (losses.focal(logits, labels) + quality).sum()

    value, slope = jax.value_and_grad(total)(logits)
    assert jnp.isfinite(value)
    assert jnp.isfinite(slope).all()


def test_sums_are_in_float32_whatever_comes():
    logits = jnp.full((2, 3), 0.3, jnp.bfloat16)
    assert losses.focal(logits, jnp.asarray([0, 1])).dtype == jnp.float32
