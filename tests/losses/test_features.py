"""The cosine loss: its range, and zero vectors."""

import jax
import jax.numpy as jnp
import numpy as np

from vadapt.losses.features import cosine_distance


def test_distance_runs_from_zero_to_four():
    x = jnp.array([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    target = jnp.broadcast_to(jnp.array([5.0, 0.0]), x.shape)
    np.testing.assert_allclose(cosine_distance(x, target), [0.0, 2.0, 4.0], atol=1e-6)


def test_zero_vectors_give_two_and_no_gradient():
    x = jnp.array([[0.0, 0.0], [1.0, 1.0]])
    target = jnp.array([[1.0, 0.0], [1.0, 0.0]])

    def loss(x):
        return cosine_distance(x, target).sum()

    assert cosine_distance(x, target)[0] == 2.0
    gradient = jax.grad(loss)(x)
    np.testing.assert_array_equal(gradient[0], 0.0)
    assert jnp.abs(gradient[1]).max() > 0.1
    assert jnp.isfinite(jax.grad(lambda t: cosine_distance(x, 0.0 * t).sum())(target)).all()


def test_small_vectors_count_as_large_ones_do_and_half_precision_is_widened():
    x = jnp.array([[1e-8, 1e-8]])
    np.testing.assert_allclose(cosine_distance(x, x), 0.0, atol=1e-6)
    x = jnp.full((1, 1024), 3.0, jnp.bfloat16)
    assert cosine_distance(x, x).dtype == jnp.float32
    np.testing.assert_allclose(cosine_distance(x, x), 0.0, atol=1e-6)
