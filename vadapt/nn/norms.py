"""Norms in float32, whatever the input and the weights, and learned scales."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, in float32 whatever the input and the weights.

    The variance is the mean squared distance from the mean; E[x^2] - E[x]^2, which flax takes by
    default, is off by 6e-3 on inputs of mean 100.
    """

    axes: tuple[int, ...] = (-1,)

    def __init__(self, width: int, *, epsilon: float):
        self.width = width
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        y = x.astype(jnp.float32)
        variance = y.var(axis=self.axes, keepdims=True)
        y = jax.nn.standardize(y, axis=self.axes, variance=variance, epsilon=self.epsilon)
        scale, bias = self.scale[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)
        y = y * jnp.broadcast_to(scale, y.shape) + jnp.broadcast_to(bias, y.shape)
        return y.astype(x.dtype)


class LayerScale(nnx.Module):
    """One learned factor a channel (CaiT, arXiv:2103.17239)."""

    def __init__(self, width: int, initial: float):
        self.gamma = nnx.Param(jnp.full((width,), initial, jnp.float32))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return x * jnp.broadcast_to(self.gamma[...], x.shape)
