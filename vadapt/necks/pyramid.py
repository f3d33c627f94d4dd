"""Maps of several strides out of a plain transformer's maps, which all have one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

FACTORS = (4.0, 2.0, 1.0, 0.5)  # strides 4, 8, 16, 32 from patches of 16


def pyramid(
    maps: Sequence[Float[Array, "b h w d"]], factors: Sequence[float] = FACTORS
) -> tuple[Float[Array, "b _ _ d"], ...]:
    """Each map resized by its factor: bilinear, half-pixel centres, no antialiasing.

    A side of 3 at a factor of 0.5 gives 1; the sampling step stays 2, so that its end is not seen.

    Source: the wiring of Rein's backbones, arXiv:2312.04265, released code.
    """
    return tuple(_scaled(x, factor) for x, factor in zip(maps, factors, strict=True))


def _scaled(x: Array, factor: float) -> Array:
    if factor == 1:
        return x
    b, h, w, d = x.shape
    return jax.image.scale_and_translate(
        x.astype(jnp.float32),
        (b, int(h * factor), int(w * factor), d),
        (1, 2),
        jnp.full(2, factor, jnp.float32),
        jnp.zeros(2),
        jax.image.ResizeMethod.LINEAR,
        antialias=False,
    ).astype(x.dtype)


def pyramid_neck(
    widths: Sequence[int], *, rngs: nnx.Rngs
) -> tuple[Callable[..., Any], tuple[int, ...]]:
    """`pyramid` of four maps; nothing of it is learned. Source: Rein's wiring, arXiv:2312.04265."""
    return pyramid, tuple(widths)


def no_neck(widths: Sequence[int], *, rngs: nnx.Rngs) -> tuple[None, tuple[int, ...]]:
    """No neck: the head gets the backbone's maps."""
    return None, tuple(widths)
