"""Losses between predicted and given features."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Squared norms below it count as zero: far above float32's smallest normal number, far below
# any feature's.
_FLOOR = 1e-24


def cosine_distance(
    prediction: Float[Array, "*b n d"], target: Float[Array, "*b n d"]
) -> Float[Array, "*b n"]:
    """2 - 2 cos of every token, in [0, 4], in float32; 2 where a vector is zero.

    A zero vector gives no gradient, where a plain division would give NaN.

    Source: MILAN, arXiv:2208.06049: the squared distance of the normalised features.
    """
    return 2.0 - 2.0 * (_unit(prediction) * _unit(target)).sum(axis=-1)


def _unit(x: Array) -> Array:
    x = x.astype(jnp.float32)
    squared = jnp.square(x).sum(axis=-1, keepdims=True)
    nonzero = squared > _FLOOR
    # The inner choice keeps the gradient of the branch that is not taken finite.
    return x * jnp.where(nonzero, jax.lax.rsqrt(jnp.where(nonzero, squared, 1.0)), 0.0)
