"""Residual branches and transformer blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

from flax import nnx
from jaxtyping import Array, Float

from vadapt.nn.activations import gelu_exact
from vadapt.nn.attention import Attention
from vadapt.nn.drop import OptionalKey, drop_path, split_key
from vadapt.nn.mlp import Mlp, SwiGLU
from vadapt.nn.norms import LayerNorm, LayerScale


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

    ROLES: ClassVar[dict[str, tuple[str, ...]]] = {"attn": ("attention",), "mlp": ("mlp",)}

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
