"""The table of the relative position bias against the matrix that codes of positions give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.errors import ShapeError
from vadapt.kernels.position_bias import PositionBias, position_bias
from vadapt.nn.positions import sincos_table

CLOSE = 2e-6  # of a stored matrix, which is float32


def codes(channels, grid):
    return sincos_table(channels, grid, class_token=False).astype(np.float64)


def likeness(channels, grid):
    code = codes(channels, grid)
    return jnp.asarray(-2 * code @ code.T / channels, jnp.float32)


def resized(matrix, shape):
    method = jax.image.ResizeMethod.CUBIC_PYTORCH
    return jax.image.resize(matrix, shape, method, antialias=False)


@pytest.mark.parametrize(("channels", "grid", "r"), [(16, 6, 1), (80, 8, 4), (24, 9, 3), (8, 7, 2)])
def test_the_table_gives_the_resized_matrix(channels, grid, r):
    bias = position_bias(channels, grid, (grid, grid), reduction=r)
    assert isinstance(bias, PositionBias)
    assert bias.shape == (grid**2, (grid // r) ** 2)
    expected = resized(likeness(channels, (grid, grid)), bias.shape)
    np.testing.assert_allclose(bias.dense(), expected, atol=CLOSE)


@pytest.mark.parametrize("r", [1, 2])
def test_another_size_resizes_the_matrix(r):
    bias = position_bias(16, 6, (4, 10), reduction=r)
    matrix = resized(likeness(16, (6, 6)), (36, (6 // r) ** 2))
    np.testing.assert_allclose(bias, resized(matrix, (40, 40 // r**2)), atol=CLOSE)


def test_as_many_nodes_in_another_shape_have_the_bias_as_it_is():
    bias = position_bias(16, 6, (4, 9))
    np.testing.assert_allclose(bias.dense(), likeness(16, (6, 6)), atol=CLOSE)


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_the_geometric_bias_is_the_mean_over_the_nodes_of_a_cell(size):
    bias = position_bias(16, 6, size, reduction=2, geometric=True)
    assert bias.shape == (size[0] * size[1], (size[0] // 2) * (size[1] // 2))
    h, w = (side // 2 * 2 for side in size)
    step = np.meshgrid(*(np.arange(side) * 6 / side for side in size), indexing="ij")
    frequencies = 10000.0 ** (-np.arange(4) / 4)
    angles = [x.reshape(-1, 1, 1) - x.reshape(1, -1, 1) for x in step]
    matrix = -sum(np.cos(angle * frequencies).sum(-1) for angle in angles) / 8
    matrix = matrix.reshape(-1, *size)[:, :h, :w]
    expected = matrix.reshape(-1, h // 2, 2, w // 2, 2).mean((2, 4)).reshape(len(matrix), -1)
    np.testing.assert_allclose(bias.dense(), expected, atol=CLOSE)


def test_no_matrix_is_made_for_large_grids():
    bias = position_bias(80, 144, (144, 144), reduction=4)
    assert sum(x.size for x in jax.tree.leaves(bias)) == 2 * 144
    assert [factor.shape for factor in bias.factors()] == [(144, 1296)] * 2


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="divisible by 4"):
        position_bias(6, 4, (4, 4))
    with pytest.raises(ShapeError, match="4x4 nodes"):
        position_bias(8, 4, (4, 3), reduction=4)
