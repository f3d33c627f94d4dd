"""Multi-head self-attention."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from vadapt.errors import ShapeError
from vadapt.kernels.attention import attention, relative_bias, shares
from vadapt.nn.linear import xavier_linear
from vadapt.nn.positions import Rotation, relative_position_index, rotate


class RelativeBias(nnx.Module):
    """One learned number per head and offset, added to attention logits; class token first.

    Args:
        window: (rows, columns) of patches that it is made for, and good for alone.

    Source: BEiT, arXiv:2106.08254.
    """

    def __init__(self, window: tuple[int, int], num_heads: int):
        self.window = window
        rows = (2 * window[0] - 1) * (2 * window[1] - 1) + 3
        self.table = nnx.Param(jnp.zeros((rows, num_heads), jnp.float32))

    def index(self, num_tokens: int) -> Int[np.ndarray, "n n"]:
        """Row of the table for each pair of tokens.

        Raises:
            ShapeError: there are more or fewer tokens than in the window.
        """
        index = relative_position_index(self.window)
        if len(index) != num_tokens:
            raise ShapeError(
                f"relative positions of a {self.window[0]}x{self.window[1]} grid need "
                f"{len(index)} tokens, got {num_tokens}; feed images of the model's image_size"
            )
        return index


class Attention(nnx.Module):
    """Multi-head self-attention with one fused query-key-value projection.

    The rows of the projection are q, k, v thirds, head-major inside each, as in timm.

    Args:
        key_bias: False leaves a bias to queries and values only (BEiT, EVA-02, DINOv3).
        rotary: how a call's rotation turns queries and keys, a key of `positions.TURNS`.
        relative, shared_relative: biases of the logits by offset, this layer's own and one that
            other layers have too; they add.
    """

    ROLES: ClassVar[dict[str, tuple[str, ...]]] = {"qkv": ("q", "k", "v"), "proj": ("attn_out",)}

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
        tables, index = self._relative(x.shape[1])
        out = attention(queries, keys, values, tables=tables, index=index)
        return self.proj(rearrange(out, "b n h d -> b n (h d)"))

    def weights(
        self, x: Float[Array, "b n d"], rotation: Rotation | None = None
    ) -> Float[Array, "b h n n"]:
        """Attention weights: each token's share of every other, in float32; rows sum to 1."""
        queries, keys, _ = self._heads(x, rotation)
        tables, index = self._relative(x.shape[1])
        bias = None if index is None else relative_bias(tables, index)
        return shares(queries, keys, bias, scale=queries.shape[-1] ** -0.5)

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

    def _relative(self, num_tokens: int) -> tuple[list[Array], Int[np.ndarray, "n n"] | None]:
        """Tables of relative positions, and the index into them that they share."""
        found = [one for one in (self.relative, self.shared_relative) if one is not None]
        return [one.table[...] for one in found], found[0].index(num_tokens) if found else None
