"""Dropout, stochastic depth, and the keys that they draw from."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

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


# The key of the block that is being computed: modules between it and its layers know of none.
_key: contextvars.ContextVar[OptionalKey] = contextvars.ContextVar("key", default=None)


@contextlib.contextmanager
def drawing_from(key: OptionalKey) -> Iterator[None]:
    """Let layers that methods changed, inside a block that is called here, draw from this key."""
    token = _key.set(key)
    try:
        yield
    finally:
        _key.reset(token)


def layer_key(number: int) -> OptionalKey:
    """A layer's own key in training, by the number of the layer; None outside of it."""
    key = _key.get()
    return None if key is None else jax.random.fold_in(key, number)
