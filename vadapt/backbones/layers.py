"""Layers that transformers share: norms in float32, attention, MLP, residual branches."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Key

from vadapt.backbones.positions import Rotation, relative_position_index, rotate
from vadapt.errors import ConfigError, ShapeError

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


def gelu_tanh(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """GELU by the tanh form, as SigLIP's towers have it."""
    return jax.nn.gelu(x, approximate=True)


def gelu_quick(x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """CLIP's GELU, x * sigmoid(1.702 x); differs from the exact one by up to 0.02."""
    return x * jax.nn.sigmoid(1.702 * x)


def uniform(limit: float) -> Callable[..., Array]:
    """An initialiser: every number uniform in (-limit, limit)."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


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


class RelativeBias(nnx.Module):
    """One learned number a head and offset, added to attention logits; class token first.

    Args:
        window: (rows, columns) of patches that it is made for, and good for alone.

    Source: BEiT, arXiv:2106.08254.
    """

    def __init__(self, window: tuple[int, int], num_heads: int):
        self.window = window
        rows = (2 * window[0] - 1) * (2 * window[1] - 1) + 3
        self.table = nnx.Param(jnp.zeros((rows, num_heads), jnp.float32))

    def __call__(self, num_tokens: int) -> Float[Array, "1 h n n"]:
        index = relative_position_index(self.window)
        if len(index) != num_tokens:
            raise ShapeError(
                f"relative positions of a {self.window[0]}x{self.window[1]} grid need "
                f"{len(index)} tokens, got {num_tokens}; feed images of the model's image_size"
            )
        return rearrange(self.table[...].astype(jnp.float32)[index], "q k h -> 1 h q k")


class Attention(nnx.Module):
    """Multi-head self-attention with one fused query-key-value projection.

    The rows of the projection are q, k, v thirds, head-major inside each, as in timm.

    Args:
        key_bias: False leaves a bias to queries and values only (BEiT, EVA-02, DINOv3).
        rotary: how a call's rotation turns queries and keys, a key of `positions.TURNS`.
        relative, shared_relative: biases of the logits by offset, this layer's own and one that
            other layers have too; they add.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        qkv_bias: bool = True,
        key_bias: bool = True,
        proj_bias: bool = True,
        rotary: str | None = None,
        relative: RelativeBias | None = None,
        shared_relative: RelativeBias | None = None,
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.rotary = num_heads, rotary
        self.qkv = xavier_linear(width, 3 * width, use_bias=qkv_bias and key_bias, rngs=rngs)
        apart = qkv_bias and not key_bias
        self.q_bias = nnx.Param(jnp.zeros((width,), jnp.float32)) if apart else None
        self.v_bias = nnx.Param(jnp.zeros((width,), jnp.float32)) if apart else None
        self.proj = xavier_linear(width, width, use_bias=proj_bias, rngs=rngs)
        self.relative, self.shared_relative = relative, shared_relative

    def __call__(
        self, x: Float[Array, "b n d"], rotation: Rotation | None = None
    ) -> Float[Array, "b n d"]:
        queries, keys, values = self._heads(x, rotation)
        shares = self._shares(queries, keys).astype(x.dtype)
        out = jnp.einsum("bhqk,bkhd->bqhd", shares, values)
        return self.proj(rearrange(out, "b n h d -> b n (h d)"))

    def weights(
        self, x: Float[Array, "b n d"], rotation: Rotation | None = None
    ) -> Float[Array, "b h n n"]:
        """How much every token takes from every other, in float32; the last axis sums to 1."""
        queries, keys, _ = self._heads(x, rotation)
        return self._shares(queries, keys)

    def _heads(self, x: Array, rotation: Rotation | None) -> tuple[Array, Array, Array]:
        """Queries, keys and values, [b, n, h, d] each."""
        queries, keys, values = jnp.split(self.qkv(x), 3, axis=-1)
        if self.q_bias is not None and self.v_bias is not None:
            queries = queries + jnp.broadcast_to(self.q_bias[...], queries.shape)
            values = values + jnp.broadcast_to(self.v_bias[...], values.shape)
        queries, keys, values = (
            rearrange(y, "b n (h d) -> b n h d", h=self.num_heads) for y in (queries, keys, values)
        )
        if self.rotary is not None and rotation is not None:
            queries, keys = (rotate(y, rotation, self.rotary) for y in (queries, keys))
        return queries, keys, values

    def _shares(self, queries: Float[Array, "b q h d"], keys: Float[Array, "b k h d"]) -> Array:
        # Plain products: jax.nn.dot_product_attention comes to the same, 7 % slower on CPUs.
        logits = jnp.einsum("bqhd,bkhd->bhqk", queries, keys, preferred_element_type=jnp.float32)
        logits = logits * queries.shape[-1] ** -0.5
        for bias in (self.relative, self.shared_relative):
            if bias is not None:
                logits = logits + bias(queries.shape[1])
        return jax.nn.softmax(logits, axis=-1)


class Mlp(nnx.Module):
    """Two linear layers with an activation between them, and a norm behind it if asked for."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Callable[[Array], Array] = gelu_exact,
        use_bias: bool = True,
        norm: LayerNorm | None = None,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.fc1 = xavier_linear(width, hidden, use_bias=use_bias, rngs=rngs)
        self.norm = norm
        self.fc2 = xavier_linear(hidden, width, use_bias=use_bias, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        y = self.activation(self.fc1(x))
        return self.fc2(y if self.norm is None else self.norm(y))


class SwiGLU(nnx.Module):
    """A gated MLP, w3(silu(gate) * value), with gate and value from one fused projection `w12`.

    Args:
        norm: one of the product, before `w3` (the sub-norm of EVA-02, arXiv:2303.11331).

    Source: arXiv:2002.05202.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        use_bias: bool = True,
        norm: LayerNorm | None = None,
        rngs: nnx.Rngs,
    ):
        self.w12 = xavier_linear(width, 2 * hidden, use_bias=use_bias, rngs=rngs)
        self.norm = norm
        self.w3 = xavier_linear(hidden, width, use_bias=use_bias, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        gate, value = jnp.split(self.w12(x), 2, axis=-1)
        y = jax.nn.silu(gate) * value
        return self.w3(y if self.norm is None else self.norm(y))


def swiglu_hidden(hidden: int) -> int:
    """The hidden width of a gated MLP that weighs as much as a plain one of `hidden`, as DINOv2's.

    Two thirds, since it has three matrices and not two, rounded up to a multiple of 8.

    >>> swiglu_hidden(4 * 1536)
    4096
    """
    return (int(hidden * 2 / 3) + 7) // 8 * 8


class Branch(nnx.Module):
    """A residual term: drop_path(scale * inner(norm(x))); the caller adds it to x.

    `compute` and `finish` are its two halves, for methods that read the inner module's output
    before layer scale. A method that replaces a branch keeps the names `norm`, `inner` and
    `scale`, so that every path of the frozen model stays what it was. What an inner module needs
    besides its input (attention: a rotation) is the caller's `context`.
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

    def compute(self, x: Float[Array, "b *n d"], *context: Any) -> Float[Array, "b *n d"]:
        return self.inner(self.norm(x), *context)

    def finish(self, y: Float[Array, "b *n d"], key: OptionalKey = None) -> Float[Array, "b *n d"]:
        y = y if self.scale is None else self.scale(y)
        return drop_path(y, self.drop_path_rate, key)

    def __call__(
        self, x: Float[Array, "b *n d"], key: OptionalKey = None, *context: Any
    ) -> Float[Array, "b *n d"]:
        return self.finish(self.compute(x, *context), key)


class Block(nnx.Module):
    """A pre-norm transformer block: x + attention branch, then + MLP branch.

    A key makes the call a training one (dropout and drop path act); without it, it is
    deterministic. With `swiglu` the MLP is a gated one, which has no use for `activation`.

    Args:
        attention: makes the attention, of which `context` is; tokens may stand in any shape that
            it takes, such as maps.
        mlp_hidden: hidden width of the MLP; None for `mlp_ratio` times `width`.
        mlp_norm: whether a norm precedes the MLP's last layer.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        attention: Callable[..., nnx.Module] = Attention,
        mlp_ratio: float = 4.0,
        mlp_hidden: int | None = None,
        mlp_norm: bool = False,
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
            attention(width, num_heads, qkv_bias=qkv_bias, proj_bias=proj_bias, rngs=rngs)
        )
        hidden = int(width * mlp_ratio) if mlp_hidden is None else mlp_hidden
        kind = SwiGLU if swiglu else functools.partial(Mlp, activation=activation)
        norm = LayerNorm(hidden, epsilon=norm_epsilon) if mlp_norm else None
        self.mlp = branch(kind(width, hidden, use_bias=mlp_bias, norm=norm, rngs=rngs))

    def __call__(
        self, x: Float[Array, "b *n d"], key: OptionalKey = None, *context: Any
    ) -> Float[Array, "b *n d"]:
        attn_key, mlp_key = split_key(key, 2)
        x = x + self.attn(x, attn_key, *context)
        return x + self.mlp(x, mlp_key)


def block_numbers(layers: int | Sequence[int], depth: int, what: str = "blocks") -> tuple[int, ...]:
    """Numbers of blocks (or of `what`), negative ones from the end, as numbers from 0.

    Raises:
        ConfigError: a block number that does not exist.
    """
    wanted = (layers,) if isinstance(layers, int) else tuple(layers)
    if any(not -depth <= layer < depth for layer in wanted):
        raise ConfigError(f"layers {wanted} of a model with {depth} {what} (0 to {depth - 1})")
    return tuple(layer % depth for layer in wanted)
