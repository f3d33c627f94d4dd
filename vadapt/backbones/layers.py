"""Layers that transformers share: norms in float32, attention, MLP, residual branches."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Key

OptionalKey = Key[Array, ""] | None


@jax.custom_jvp
def gelu_exact(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """GELU by the error function, in float32; the tanh form differs by up to 5e-4.

    `jax.nn.gelu` goes through erfc, which is twice the work of erf, and keeps more for the
    backward pass than the one slope that it needs.
    """
    return (x.astype(jnp.float32) * _normal_cdf(x)).astype(x.dtype)


@gelu_exact.defjvp
def _gelu_exact_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    y, below = x.astype(jnp.float32), _normal_cdf(x)
    slope = below + y * jnp.exp(-0.5 * y * y) * (2 * math.pi) ** -0.5
    return (y * below).astype(x.dtype), slope.astype(x.dtype) * tangent


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1.0 + jax.lax.erf(x.astype(jnp.float32) * 0.5**0.5))


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

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.num_heads = num_heads
        self.qkv = xavier_linear(width, 3 * width, use_bias=qkv_bias, rngs=rngs)
        self.proj = xavier_linear(width, width, use_bias=proj_bias, rngs=rngs)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        queries, keys, values = self._heads(x)
        out = jnp.einsum("bhqk,bkhd->bqhd", _shares(queries, keys).astype(x.dtype), values)
        return self.proj(rearrange(out, "b n h d -> b n (h d)"))

    def weights(self, x: Float[Array, "b n d"]) -> Float[Array, "b h n n"]:
        """How much every token takes from every other, in float32; the last axis sums to 1."""
        queries, keys, _ = self._heads(x)
        return _shares(queries, keys)

    def _heads(self, x: Array) -> list[Array]:
        """Queries, keys and values, [b, n, h, d] each."""
        thirds = jnp.split(self.qkv(x), 3, axis=-1)
        return [rearrange(y, "b n (h d) -> b n h d", h=self.num_heads) for y in thirds]


def _shares(queries: Float[Array, "b q h d"], keys: Float[Array, "b k h d"]) -> Array:
    # Plain products: jax.nn.dot_product_attention comes to the same, 7 % slower on CPUs.
    logits = jnp.einsum("bqhd,bkhd->bhqk", queries, keys, preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits * queries.shape[-1] ** -0.5, axis=-1)


class Mlp(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Callable[[Array], Array] = gelu_exact,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.fc1 = xavier_linear(width, hidden, use_bias=use_bias, rngs=rngs)
        self.fc2 = xavier_linear(hidden, width, use_bias=use_bias, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return self.fc2(self.activation(self.fc1(x)))


class SwiGLU(nnx.Module):
    """A gated MLP, w3(silu(gate) * value), with gate and value from one fused projection `w12`.

    Args:
        hidden: what a plain MLP would have. Two thirds of it are used, rounded up to a multiple of
            8, so that the three matrices weigh about as much as a plain MLP's two.

    Source: arXiv:2002.05202; the rounding is that of DINOv2, arXiv:2304.07193, released code.
    """

    def __init__(self, width: int, hidden: int, *, use_bias: bool = True, rngs: nnx.Rngs):
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        self.w12 = xavier_linear(width, 2 * hidden, use_bias=use_bias, rngs=rngs)
        self.w3 = xavier_linear(hidden, width, use_bias=use_bias, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        gate, value = jnp.split(self.w12(x), 2, axis=-1)
        return self.w3(jax.nn.silu(gate) * value)


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
    deterministic. With `swiglu` the MLP is a gated one, which has no use for `activation`.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        swiglu: bool = False,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        mlp_bias: bool = True,
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

        self.attn = branch(
            Attention(width, num_heads, qkv_bias=qkv_bias, proj_bias=proj_bias, rngs=rngs)
        )
        hidden = int(width * mlp_ratio)
        self.mlp = branch(
            SwiGLU(width, hidden, use_bias=mlp_bias, rngs=rngs)
            if swiglu
            else Mlp(width, hidden, activation=activation, use_bias=mlp_bias, rngs=rngs)
        )

    def __call__(self, x: Float[Array, "b n d"], key: OptionalKey = None) -> Float[Array, "b n d"]:
        attn_key, mlp_key = split_key(key, 2)
        x = x + self.attn(x, attn_key)
        return x + self.mlp(x, mlp_key)
