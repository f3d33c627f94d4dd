"""The ways to resize a position table against torch's `interpolate`."""

import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.nn.positions import resize_table


@pytest.mark.parametrize(
    ("way", "mode", "antialias"),
    [
        ("cubic", "bicubic", False),
        ("cubic_antialias", "bicubic", True),
        ("linear", "bilinear", False),
    ],
)
@pytest.mark.parametrize("target", [(7, 5), (2, 3), (9, 2), (4, 12)])
def test_resizing_is_pytorchs(target, way, mode, antialias, rng):
    import torch

    table = rng.normal(size=(4 * 6, 3)).astype(np.float32)
    found = resize_table(jnp.asarray(table), (4, 6), target, num_extra=0, way=way)
    grid = torch.from_numpy(table.reshape(4, 6, 3).transpose(2, 0, 1))[None]
    resized = torch.nn.functional.interpolate(grid, target, mode=mode, antialias=antialias)
    expected = resized[0].numpy().transpose(1, 2, 0).reshape(-1, 3)
    np.testing.assert_allclose(found, expected, atol=2e-6)
