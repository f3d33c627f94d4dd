"""Position tables: the fixed one, and resampling to other grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.errors import ConfigError, ShapeError
from vadapt.nn.positions import RESIZES, resize_table, sincos_table, sine_positions


def cubic_matrix(source: int, target: int, offset: float = 0.0) -> np.ndarray:
    """Bicubic resampling (a = -0.75, half-pixel, clamped) written out as a matrix."""

    def kernel(x):
        x, a = abs(x), -0.75
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    matrix = np.zeros((target, source))
    for i in range(target):
        centre = (i + 0.5) * source / (target + offset) - 0.5
        first = int(np.floor(centre)) - 1
        for j in range(first, first + 4):
            matrix[i, np.clip(j, 0, source - 1)] += kernel(centre - j)
    return matrix


@pytest.mark.parametrize(("way", "offset"), [("cubic", 0.0), ("cubic_offset", 0.1)])
@pytest.mark.parametrize("target", [(7, 5), (2, 3), (4, 7), (9, 2)])
def test_resizing_is_plain_bicubic_for_growing_shrinking_and_non_square_grids(
    target, way, offset, rng
):
    table = rng.normal(size=(1 + 4 * 6, 3)).astype(np.float32)
    resize = jax.jit(resize_table, static_argnums=(1, 2), static_argnames="way")
    found = resize(table, (4, 6), target, way=way)
    grid = table[1:].reshape(4, 6, 3)
    rows, columns = cubic_matrix(4, target[0], offset), cubic_matrix(6, target[1], offset)
    expected = np.einsum("ih,jw,hwd->ijd", rows, columns, grid).reshape(-1, 3)
    np.testing.assert_array_equal(found[0], table[0])
    np.testing.assert_allclose(found[1:], expected, atol=5e-6)  # steps are float32


@pytest.mark.parametrize("way", sorted(RESIZES))
def test_same_grid_is_untouched(way, rng):
    table = jnp.asarray(rng.normal(size=(13, 4)).astype(np.float32))
    assert resize_table(table, (3, 4), (3, 4), way=way) is table


def test_column_fills_the_first_half():
    table = sincos_table(8, (2, 3), class_token=False).reshape(2, 3, 8)
    np.testing.assert_array_equal(table[0, :, :4], table[1, :, :4])
    np.testing.assert_array_equal(table[:, 0, 4:], table[:, 2, 4:])
    np.testing.assert_allclose(table[0, 2, 0], np.sin(2.0), rtol=1e-6)


def test_sine_positions_are_shares_of_an_extent_or_count_places():
    shares = sine_positions(8, (3, 5), extent=2.0, epsilon=1.0)
    places = sine_positions(8, (3, 5), extent=None)
    # Channels: row, then column; the first sine of each has frequency 1.
    np.testing.assert_allclose(shares[:, 0, 0], np.sin(2.0 * np.arange(1, 4) / 4), rtol=1e-6)
    np.testing.assert_allclose(shares[0, :, 4], np.sin(2.0 * np.arange(1, 6) / 6), rtol=1e-6)
    np.testing.assert_allclose(places[:, 0, 0], np.sin(np.arange(1, 4)), rtol=1e-6)
    np.testing.assert_allclose(places[0, :, 5], np.cos(np.arange(1, 6)), rtol=1e-6)


def test_sincos_of_a_large_grid_is_computed_in_double_precision():
    table = sincos_table(4, (1, 5000), class_token=False)
    np.testing.assert_allclose(table[:, 0], np.sin(np.arange(5000.0)), atol=1e-7)


def test_wrong_sizes_are_named():
    with pytest.raises(ShapeError, match="divisible by 4"):
        sincos_table(6, (2, 2))
    with pytest.raises(ConfigError, match="cubic_offset"):
        resize_table(jax.numpy.zeros((5, 2)), (2, 2), (3, 3), way="cubic_ofset")
    with pytest.raises(ShapeError, match="needs 5"):
        resize_table(jax.numpy.zeros((4, 2)), (2, 2), (3, 3))
