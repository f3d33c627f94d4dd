"""Layers that transformers share: norms in float32, attention, MLP, residual branches."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Key

OptionalKey = Key[Array, ""] | None


def gelu_exact(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """GELU by the error function; the tanh form differs by up to 5e-4."""
    return jax.nn.gelu(x, approximate=False)


def gelu_quick(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """CLIP's GELU, x * sigmoid(1.702 x); differs from the exact one by up to 0.02."""
    return x * jax.nn.sigmoid(1.702 * x)


def xavier_linear(
    inputs: int, outputs: int, *, use_bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
    """A linear layer with Xavier-uniform weights and zero bias, as MAE initialises all of them."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        kernel_init=nnx.initializers.xavier_uniform(),
        rngs=rngs,
    )


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, in float32 whatever the input and the weights.

    The variance is the mean squared distance from the mean; E[x^2] - E[x]^2, which flax takes by
    default, is off by 6e-3 on inputs of mean 100.
    """

    def __init__(self, width: int, *, epsilon: float):
        self.width = width
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        y = x.astype(jnp.float32)
        variance = y.var(axis=-1, keepdims=True)
        y = jax.nn.standardize(y, variance=variance, epsilon=self.epsilon)
        scale, bias = self.scale[...].astype(jnp.float32), self.bias[...].astype(jnp.float32)
        y = y * jnp.broadcast_to(scale, y.shape) + jnp.broadcast_to(bias, y.shape)
        return y.astype(x.dtype)


class LayerScale(nnx.Module):
    """One learned factor a channel (CaiT, arXiv:2103.17239)."""

    def __init__(self, width: int, initial: float):
        self.gamma = nnx.Param(jnp.full((width,), initial, jnp.float32))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return x * jnp.broadcast_to(self.gamma[...], x.shape)


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


class Attention(nnx.Module):
    """Multi-head self-attention with one fused query-key-value projection.

    The rows of the projection are q, k, v thirds, head-major inside each, as in timm.
    """

    def __init__(self, width: int, num_heads: int, *, qkv_bias: bool = True, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.qkv = xavier_linear(width, 3 * width, use_bias=qkv_bias, rngs=rngs)
        self.proj = xavier_linear(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        out = jax.nn.dot_product_attention(*self._heads(x))
        return self.proj(rearrange(out, "b n h d -> b n (h d)"))

    def weights(self, x: Float[Array, "b n d"]) -> Float[Array, "b h n n"]:
        """How much every token takes from every other, in float32; the last axis sums to 1."""
        queries, keys, _ = self._heads(x)
        logits = jnp.einsum("bqhd,bkhd->bhqk", queries, keys, preferred_element_type=jnp.float32)
        return jax.nn.softmax(logits * queries.shape[-1] ** -0.5, axis=-1)

    def _heads(self, x: Array) -> tuple[Array, Array, Array]:
        qkv = rearrange(self.qkv(x), "b n (t h d) -> t b n h d", t=3, h=self.num_heads)
        return qkv[0], qkv[1], qkv[2]


class Mlp(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Callable[[Array], Array] = gelu_exact,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.fc1 = xavier_linear(width, hidden, rngs=rngs)
        self.fc2 = xavier_linear(hidden, width, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return self.fc2(self.activation(self.fc1(x)))


class Branch(nnx.Module):
    """A residual term: drop_path(scale * inner(norm(x))); the caller adds it to x.

    `compute` and `finish` are its two halves, for methods that read the inner module's output
    before layer scale. A method that replaces a branch keeps the names `norm`, `inner` and
    `scale`, so that every path of the frozen model stays what it was.
    """

    def __init__(
        self,
        norm: nnx.Module,
        inner: nnx.Module,
        *,
        scale: LayerScale | None = None,
        drop_path_rate: float = 0.0,
    ):
        self.norm = norm
        self.inner = inner
        self.scale = scale
        self.drop_path_rate = drop_path_rate

    def compute(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.inner(self.norm(x))

    def finish(self, y: Float[Array, "b n d"], key: OptionalKey = None) -> Float[Array, "b n d"]:
        y = y if self.scale is None else self.scale(y)
        return drop_path(y, self.drop_path_rate, key)

    def __call__(self, x: Float[Array, "b n d"], key: OptionalKey = None) -> Float[Array, "b n d"]:
        return self.finish(self.compute(x), key)


class Block(nnx.Module):
    """A pre-norm transformer block: x + attention branch, then + MLP branch.

    A key makes the call a training one (dropout and drop path act); without it, it is
    deterministic.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_epsilon: float = 1e-6,
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
        activation: Callable[[Array], Array] = gelu_exact,
        rngs: nnx.Rngs,
    ):
        def branch(inner: nnx.Module) -> Branch:
            return Branch(
                LayerNorm(width, epsilon=norm_epsilon),
                inner,
                scale=None if layer_scale is None else LayerScale(width, layer_scale),
                drop_path_rate=drop_path_rate,
            )

        self.attn = branch(Attention(width, num_heads, qkv_bias=qkv_bias, rngs=rngs))
        hidden = int(width * mlp_ratio)
        self.mlp = branch(Mlp(width, hidden, activation=activation, rngs=rngs))

    def __call__(self, x: Float[Array, "b n d"], key: OptionalKey = None) -> Float[Array, "b n d"]:
        attn_key, mlp_key = split_key(key, 2)
        x = x + self.attn(x, attn_key)
        return x + self.mlp(x, mlp_key)
