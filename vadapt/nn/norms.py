"""Norms in float32, whatever the input and the weights, and learned scales."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from vadapt.errors import ConfigError


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
    """One learned factor per channel (CaiT, arXiv:2103.17239)."""

    def __init__(self, width: int, initial: float):
        self.gamma = nnx.Param(jnp.full((width,), initial, jnp.float32))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return x * jnp.broadcast_to(self.gamma[...], x.shape)


class GroupNorm(nnx.Module):
    """A norm over groups of a map's channels, in float32, with a scale and a bias per channel.

    Raises:
        ConfigError: the channels do not make equal groups.
    """

    def __init__(self, width: int, num_groups: int, *, epsilon: float = 1e-5):
        if num_groups < 1 or width % num_groups:
            raise ConfigError(
                f"{width} channels do not make {num_groups} equal groups of a norm: give another "
                "width, or another num_groups"
            )
        self.num_groups, self.epsilon = num_groups, epsilon
        self.scale, self.bias = nnx.Param(jnp.ones((width,))), nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        y = x.astype(jnp.float32)
        groups = rearrange(y, "b h w (g c) -> b h w g c", g=self.num_groups)
        mean = groups.mean(axis=(1, 2, 4), keepdims=True)
        variance = jnp.square(groups - mean).mean(axis=(1, 2, 4), keepdims=True)
        scale, bias = (
            row[...].astype(jnp.float32).reshape(1, 1, 1, self.num_groups, -1)
            for row in (self.scale, self.bias)
        )
        # One product and one sum a number, in this order.
        scale = scale * jax.lax.rsqrt(variance + self.epsilon)
        return (groups * scale + (bias - mean * scale)).reshape(x.shape).astype(x.dtype)
