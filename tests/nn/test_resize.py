"""Resizing of maps: where the corners stay, and the type of what comes out."""

import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.nn.resize import resize_bilinear


@pytest.mark.parametrize("size", [(7, 9), (2, 3), (1, 12), (4, 6)])
def test_aligned_corners_keep_corners_and_straight_lines(size):
    rows, columns = (np.linspace(-1.0, 1.0, side) for side in (4, 6))
    x = jnp.asarray(3 * rows[:, None] - 2 * columns + 0.5, jnp.float32)[None, :, :, None]
    # One row or column is the first.
    rows, columns = (np.linspace(-1.0, 1.0 if side > 1 else -1.0, side) for side in size)
    found = resize_bilinear(x, size, align_corners=True)[0, :, :, 0]
    np.testing.assert_allclose(found, 3 * rows[:, None] - 2 * columns + 0.5, atol=1e-6)


def test_types_are_kept():
    x = jnp.zeros((2, 4, 6, 5), jnp.bfloat16)
    assert resize_bilinear(x, (3, 3)).dtype == jnp.bfloat16
