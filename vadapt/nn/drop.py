"""Dropout, stochastic depth, and the keys that they draw from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

OptionalKey = Key[Array, ""] | None


def dropout(x: Float[Array, "*n"], rate: float, key: OptionalKey) -> Float[Array, "*n"]:
    """Zeroes each number with probability `rate` and scales the rest; no key, no dropout."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def drop_path(x: Float[Array, " b *n"], rate: float, key: OptionalKey) -> Float[Array, " b *n"]:
    """Drops a whole residual term per sample (stochastic depth); no key, no drop."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def split_key(key: OptionalKey, number: int) -> tuple[OptionalKey, ...]:
    """`number` keys out of one, or as many times None."""
    return (None,) * number if key is None else tuple(jax.random.split(key, number))
