"""The kernel for TPUs, interpreted, against windows that are read and added up place by place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from vadapt.kernels import cross_layer_attention_tpu as kernel

# Interpreted as a chip works, memory starts as NaN, and programs are smaller.
CHIP = pltpu.InterpretParams(uninitialized_memory="nan")
EXAMPLES = settings(max_examples=3, derandomize=True, deadline=None)
CLOSE = {jnp.float32: 2e-6, jnp.bfloat16: 0.01}  # of the largest number


def literal(maps, bias):
    """All in float32, and windows in memory."""
    heads, (b, rows, columns, width) = len(bias), maps[-1].shape
    hidden, places, found = width // 3, [], []
    for i in range(len(maps)):
        r, halo = 2**i, int(i > 0)
        row = r * np.arange(rows)[:, None] + np.arange(r + halo)
        column = r * np.arange(columns)[:, None] + np.arange(r + halo)
        places.insert(0, (row[:, None, :, None], column[None, :, None, :], halo))
    for (row, column, halo), x in zip(places, maps, strict=True):
        x = jnp.pad(x.astype(jnp.float32), ((0, 0), (halo, 0), (halo, 0), (0, 0)))
        found.append(x[:, row, column].reshape(b, rows, columns, -1, width))
    tokens = jnp.concatenate(found, axis=3)
    q, k, v = jnp.moveaxis(tokens.reshape(*tokens.shape[:4], 3, heads, hidden // heads), 4, 0)
    q, k = (
        x * jax.lax.rsqrt(jnp.maximum((x * x).sum(axis=-1, keepdims=True), 1e-24)) for x in (q, k)
    )
    logits = jnp.einsum("bijqhd,bijkhd->bijhqk", q, k) + bias[None, None, None]
    shares = jax.nn.softmax(logits, axis=-1)
    out = jnp.einsum("bijhqk,bijkhd->bijqhd", shares, v).reshape(*tokens.shape[:4], hidden)
    given, first = [], 0
    for (row, column, halo), x in zip(places, maps, strict=True):
        size = row.shape[2] * column.shape[3]
        part = out[..., first : first + size, :]
        part = part.reshape(b, rows, columns, row.shape[2], column.shape[3], hidden)
        y = jnp.zeros((b, x.shape[1] + halo, x.shape[2] + halo, hidden))
        y = y.at[:, row, column].add(part)[:, halo:, halo:]
        given.append(y.astype(x.dtype))
        first += size
    return tuple(given)


def arrays(levels, grid, heads, width, dtype=jnp.float32, batch=1, seed=0):
    """Maps, the bias and cotangents."""
    rng = np.random.default_rng(seed)
    sizes = [(batch, grid[0] << i, grid[1] << i) for i in reversed(range(levels))]
    tokens = sum((2**i + (i > 0)) ** 2 for i in range(levels))
    hidden = heads * width

    def normal(*shape, dtype=dtype):
        return jnp.asarray(rng.normal(size=shape), dtype)

    maps = tuple(normal(*size, 3 * hidden) for size in sizes)
    bias = normal(heads, tokens, tokens, dtype=jnp.float32)
    return maps, 3 * bias, tuple(normal(*size, hidden) for size in sizes)


@jax.jit
def expected(maps, bias, ways):
    """Outputs and gradients."""
    out, pull = jax.vjp(literal, maps, bias)
    return out, *pull(ways)


def check(maps, bias, ways, interpret=CHIP):
    """Compares outputs and gradients, and returns the maps'."""

    @jax.jit
    def run(maps, bias, ways):
        out = kernel.attend(maps, bias, interpret)
        return out, *kernel.gradients(maps, bias, ways, interpret)

    close, given = CLOSE[maps[0].dtype.type], (maps, bias, ways)
    found = run(*given)
    for x, y in zip(jax.tree.leaves(expected(*given)), jax.tree.leaves(found), strict=True):
        assert x.dtype == y.dtype
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(y, x, rtol=close, atol=close * np.abs(x).max())
    return found[1]


@st.composite
def cases(draw):
    heads, width = draw(st.integers(1, 3)), draw(st.sampled_from([3, 8, 16]))
    grid = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    dtype = draw(st.sampled_from([jnp.float32, jnp.bfloat16]))
    batch, seed = draw(st.integers(1, 2)), draw(st.integers(0, 99))
    return arrays(draw(st.integers(2, 3)), grid, heads, width, dtype, batch, seed)


@EXAMPLES
@given(case=cases())
def test_windows_of_any_size_are_those_that_are_read_place_by_place(case):
    check(*case)


def test_four_levels():
    maps, bias, _ = arrays(4, (2, 2), 1, 8)
    found = jax.jit(lambda maps, bias: kernel.attend(maps, bias, CHIP))(maps, bias)
    for x, y in zip(literal(maps, bias), found, strict=True):
        np.testing.assert_allclose(y, x, atol=1e-5)


def test_channels_in_several_planes_of_memory():
    check(*arrays(2, (1, 3), 2, 24))


def test_places_of_zeros_have_a_gradient():
    maps, bias, ways = arrays(2, (2, 2), 2, 8)
    maps = tuple(x.at[:, 1].set(0.0) for x in maps)
    gradients = check(maps, bias, ways)
    assert all(np.isfinite(x).all() for x in gradients)


def test_a_bias_of_any_height_overflows_nothing():
    maps, bias, _ = arrays(2, (1, 2), 1, 8)
    for height in (1e4, -1e4):
        out = kernel.attend(maps, bias + height, CHIP)
        np.testing.assert_allclose(out[0], literal(maps, bias)[0], atol=0.02)


def test_instances_do_not_race(capfd):
    maps, bias, ways = arrays(3, (2, 2), 1, 8, batch=2)
    check(maps, bias, ways, pltpu.InterpretParams(detect_races=True))
    assert "RACE DETECTED" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [([(7, 8), (4, 4)], "float32"), ([(8, 8), (4, 4)], "float16"), ([(0, 8), (0, 4)], "float32")],
)
def test_what_does_not_fit_is_told(sizes, dtype):
    maps = [jax.ShapeDtypeStruct((1, *size, 24), dtype) for size in sizes]
    assert not kernel.fits(maps, 2)


def test_rows_of_cells_fit_up_to_what_a_chip_keeps():
    def maps(columns):
        sizes = [(8, columns * 8), (4, columns * 4), (2, columns * 2), (1, columns)]
        return [jax.ShapeDtypeStruct((1, *size, 192), "float32") for size in sizes]

    assert kernel.fits(maps(48), 4)  # 3072 pixels
    assert not kernel.fits(maps(64), 4)
