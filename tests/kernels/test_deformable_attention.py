"""Deformable attention: both forms against a plain loop, in numbers and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.kernels import bilinear
from vadapt.kernels import deformable_attention as kernel

SIZES = ((2, 3), (5, 4))
FORMS = {"gathered": kernel.gathered, "spread": kernel.spread}


@pytest.fixture
def arguments(rng):
    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    places = rng.uniform(-0.4, 1.4, (2, 7, 2, 2, 3, 2))
    places[:, 0] = 0.5  # on a border of pixels, where slopes change
    return normal(2, 26, 2, 4), jnp.asarray(places, jnp.float32), normal(2, 7, 2, 2, 3)


def literal(values, places, weights):
    """Level after level, head after head."""
    b, q, heads, _, points, _ = places.shape
    out, start = jnp.zeros((b, q, heads, values.shape[-1])), 0
    for level, (rows, columns) in enumerate(SIZES):
        maps = values[:, start : start + rows * columns]
        start += rows * columns
        for head in range(heads):
            where = places[:, :, head, level].reshape(b, -1, 2)
            grid = maps[:, :, head].reshape(b, rows, columns, -1)
            read = bilinear.sample(grid, where).reshape(b, q, points, -1)
            out = out.at[:, :, head].add((read * weights[:, :, head, level, :, None]).sum(2))
    return out


@pytest.mark.parametrize("block", [3, 8])
@pytest.mark.parametrize("form", FORMS)
def test_numbers_and_gradients_are_those_of_a_loop(arguments, form, block, monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", block)  # with and without padding

    def run(function):
        def loss(*arguments):
            return jnp.sin(function(*arguments)).sum()

        return jax.jit(lambda *x: (function(*x), jax.grad(loss, (0, 1, 2))(*x)))(*arguments)

    found = run(lambda *x: FORMS[form](*x, SIZES))
    for one, other in zip(*map(jax.tree.leaves, (found, run(literal))), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5)


def test_places_far_outside_give_nothing(arguments):
    values, places, weights = arguments
    for far in (1e9, -1e9):
        out = kernel.deformable_attention(values, SIZES, jnp.full_like(places, far), weights)
        assert not np.asarray(out).any()
    grads = jax.grad(
        lambda places: kernel.deformable_attention(values, SIZES, places, weights).sum()
    )(jnp.full_like(places, 1e9))
    assert not np.asarray(grads).any()


def test_bfloat16_values_are_summed_in_float32(arguments):
    values, places, weights = arguments

    @jax.jit
    def results(values, places, weights):
        half = values.astype(jnp.bfloat16)
        exact = kernel.deformable_attention(values, SIZES, places, weights)
        return exact, [form(half, places, weights, SIZES) for form in FORMS.values()]

    exact, several = results(values, places, weights)
    for found in several:
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, exact, atol=0.1)
