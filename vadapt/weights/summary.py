"""A backbone's features in one line, to see on two machines whether they are the same."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def fixed_image(height: int, width: int) -> np.ndarray:
    """Waves of three colours in 0-1, [height, width, 3]; the same on every machine."""
    rows, columns, channels = np.ogrid[:height, :width, :3]
    return 0.5 + 0.25 * np.sin(0.11 * rows * (1 + channels)) + 0.25 * np.cos(0.07 * columns)


def summary_of_features(model: Any, statistics: Any) -> str:
    """Shape, mean, deviation and a checksum of the last features of the fixed image.

    Computed in float32 with exact products, at the size that the model's positions are made for.

    Args:
        statistics: mean and deviation per channel, see `models.statistics`.
    """
    grid = getattr(model, "grid", (7, 7))
    side = getattr(model, "patch_size", max(getattr(model, "strides", (1,))))
    height, width = (places * side for places in grid)
    mean, deviation = map(np.asarray, statistics)
    pixels = (fixed_image(height, width) - mean) / deviation
    graph, state = nnx.split(model)
    with jax.default_matmul_precision("highest"):
        features = jax.jit(lambda state, images: nnx.merge(graph, state).features(images))(
            state, jnp.asarray(pixels, jnp.float32)[None]
        )
    numbers = np.asarray(features, np.float64)
    # Tells places and channels apart: every number has a weight of its own.
    checksum = np.cos(np.arange(numbers.size)) @ numbers.ravel()
    return (
        f"features {list(numbers.shape[1:])} of the fixed image at {height}x{width}: "
        f"mean {numbers.mean():.5f}, deviation {numbers.std():.5f}, checksum {checksum:.3f}"
    )
