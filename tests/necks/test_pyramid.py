"""A pyramid of one stride's maps: bilinear sampling at nominal factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.necks.pyramid import pyramid


def test_strides_are_quarter_half_one_and_double(rng):
    maps = [jnp.asarray(rng.normal(size=(2, 4, 6, 3)), jnp.float32)] * 4

    def found(maps):
        grown = pyramid(maps)
        assert grown[2] is maps[2]
        return grown

    shapes = [x.shape[1:3] for x in jax.eval_shape(found, maps)]
    assert shapes == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_halving_is_the_mean_of_two_by_two_and_forgets_an_odd_end(rng):
    x = rng.normal(size=(1, 5, 4, 3)).astype(np.float32)
    (half,) = jax.jit(lambda x: pyramid([x], [0.5]))(x)
    expected = x[:, :4].reshape(1, 2, 2, 2, 2, 3).mean((2, 4))
    np.testing.assert_allclose(half, expected, atol=1e-6)


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_growing_repeats_the_border(factor):
    x = jnp.arange(3.0)[None, None, :, None]
    (grown,) = jax.jit(lambda x: pyramid([x], [factor]))(x)
    first = int(factor) // 2
    np.testing.assert_array_equal(grown[0, 0, :first, 0], 0.0)
    np.testing.assert_array_equal(grown[0, 0, -first:, 0], 2.0)
    np.testing.assert_allclose(np.diff(grown[0, 0, first:-first, 0]), 1 / factor, rtol=1e-5)


def test_the_type_of_the_maps_stays():
    (half,) = pyramid([jnp.ones((1, 2, 2, 1), jnp.bfloat16)], [0.5])
    assert half.dtype == jnp.bfloat16
