"""Quick draws are JAX's own, to the bit."""

import jax
import numpy as np
import pytest

from tests.quick_random import DRAWS, SMALLEST

OPTIONS = {"truncated_normal": {"lower": -2.0, "upper": 2.0}, "uniform": {"minval": -0.3}}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 1, SMALLEST // 2)])
def test_quick_draws_are_the_plain_ones(name, shape):
    draw, arguments = getattr(jax.random, name), {"shape": shape, **OPTIONS.get(name, {})}
    plain = draw.__wrapped__
    assert draw is not plain
    found, expected = (f(jax.random.key(3), **arguments) for f in (draw, plain))
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(found, expected)


def test_what_is_traced_draws_as_ever():
    draw = jax.jit(lambda key: jax.random.normal(key, (3, 4)))
    np.testing.assert_allclose(
        draw(jax.random.key(0)), jax.random.normal(jax.random.key(0), (3, 4)), rtol=1e-6
    )
