"""Resizing of maps."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize_bilinear(
    x: Float[Array, "b h w c"], size: Sequence[int], *, align_corners: bool = False
) -> Float[Array, "b _ _ c"]:
    """Maps at another (height, width): bilinear, no antialiasing, in float32.

    The weights are those of float64: `jax.image.resize` errs by 2e-6 of the range in their place.

    Args:
        align_corners: the centres of the corner pixels stay where they are, and a side of 1 is its
            first pixel; else the edges of the corner pixels do (half-pixel centres). As in
            PyTorch's `interpolate(mode="bilinear")`.
    """
    y = x.astype(jnp.float32)
    for axis, new in ((1, size[0]), (2, size[1])):
        old = y.shape[axis]
        if old == new:
            continue
        if align_corners:
            at = np.arange(new) * ((old - 1) / max(new - 1, 1))
        else:
            at = ((np.arange(new) + 0.5) * (old / new) - 0.5).clip(0, old - 1)
        first = at.astype(np.int32)
        shape = [new if number == axis else 1 for number in range(4)]
        weight = jnp.asarray((at - first).reshape(shape), jnp.float32)
        low = jnp.take(y, first, axis=axis)
        high = jnp.take(y, np.minimum(first + 1, old - 1), axis=axis)
        y = low + weight * (high - low)
    return y.astype(x.dtype)


def average_pool(x: Float[Array, "b h w d"], side: int) -> Float[Array, "b s s d"]:
    """Means over a grid of side x side windows, which overlap where it does not divide the map."""
    rows, columns = (jnp.asarray(_windows(n, side), x.dtype) for n in x.shape[1:3])
    return jnp.einsum("bhwd,sh,tw->bstd", x, rows, columns)


def _windows(length: int, number: int) -> np.ndarray:
    """For each window its share of every place: [number, length], rows that sum to 1."""
    places, first = np.arange(length), np.arange(number)[:, None]
    inside = (places >= first * length // number) & (places < -(-(first + 1) * length // number))
    return inside / inside.sum(axis=1, keepdims=True)
