"""Losses of labels: the definition in float64, gradients that stay finite, labels in doubt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.losses.multilabel import asymmetric_loss, label_losses, smoothed_cross_entropy


def case(rng, scale=3.0):
    logits = jnp.asarray(scale * rng.normal(size=(4, 7)), jnp.float32)
    return logits, jnp.asarray(rng.integers(0, 2, size=(4, 7)), jnp.int8)


def reference(logits, targets, gamma_positive, gamma_negative, clip, eps=1e-8):
    """The formula as it is written, in float64."""
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    right = np.where(targets > 0, p, np.minimum(1 - p + clip, 1))
    gamma = np.where(targets > 0, gamma_positive, gamma_negative)
    return -np.log(np.maximum(right, eps)) * (1 - right) ** gamma


@pytest.mark.parametrize("gammas", [(0.0, 4.0), (1.0, 3.0), (0.5, 0.5), (0, 0)])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_the_formula_and_its_reductions(rng, gammas, clip):
    logits, targets = case(rng)
    options = {"gamma_positive": gammas[0], "gamma_negative": gammas[1], "clip": clip}
    each = reference(logits, np.asarray(targets), *gammas, clip)
    weights = jnp.asarray(rng.uniform(size=4), jnp.float32)
    weighted = each * np.asarray(weights)[:, None]
    expected = {"none": each, "mean": each.mean(), "sum": each.sum(), "batch": each.sum() / 4}
    for reduction, value in expected.items():
        found = asymmetric_loss(logits, targets, reduction=reduction, **options)
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-6)
    found = asymmetric_loss(logits, targets, weights=weights, **options)
    np.testing.assert_allclose(found, weighted.sum() / 4, rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_no_logit_gives_a_gradient_that_is_not_finite(gamma, clip):
    logits = jnp.asarray([[-300.0, -90.0, -20.0, 0.0, 20.0, 90.0, 300.0]])
    for target in (0, 1):

        def loss(logits, target=target):
            targets = jnp.full(logits.shape, target, jnp.int8)
            return asymmetric_loss(
                logits, targets, gamma_positive=gamma, gamma_negative=gamma, clip=clip
            )

        value, gradient = jax.value_and_grad(loss)(logits)
        assert jnp.isfinite(value)
        assert jnp.isfinite(gradient).all()


def test_labels_in_doubt_neither_cost_nor_teach(rng):
    logits, targets = case(rng)
    doubtful = targets.at[1, 2].set(-1)
    for loss in (asymmetric_loss, smoothed_cross_entropy):
        each = loss(logits, targets, reduction="none").at[1, 2].set(0.0)
        np.testing.assert_array_equal(loss(logits, doubtful, reduction="none"), each)
    gradient = jax.grad(lambda x: sum(label_losses(x, doubtful).values(), jnp.zeros(())))(logits)
    assert gradient[1, 2] == 0
    assert jnp.count_nonzero(gradient) >= 26


def test_smoothing_and_the_sum_of_both_terms(rng):
    logits, targets = case(rng)
    wanted = np.where(np.asarray(targets) > 0, 0.9, 0.1)
    x = np.asarray(logits, np.float64)
    expected = (np.logaddexp(0, x) - wanted * x).sum() / 4
    np.testing.assert_allclose(smoothed_cross_entropy(logits, targets), expected, rtol=1e-6)
    terms = label_losses(logits, targets)
    np.testing.assert_allclose(terms["loss_bce"], expected, rtol=1e-6)
    asymmetric = reference(logits, np.asarray(targets), 0.0, 2.0, 0.05).sum() / 4
    np.testing.assert_allclose(terms["loss_asl"], 10 * asymmetric, rtol=1e-5)
    assert asymmetric_loss(logits.astype(jnp.bfloat16), targets).dtype == jnp.float32
