"""MILAN's prompting decoder: only removed tokens are updated, the visible ones prompt them."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from vadapt.heads.mae_decoder import MAEDecoder
from vadapt.kernels.attention import attention
from vadapt.nn.blocks import Branch
from vadapt.nn.drop import OptionalKey
from vadapt.nn.linear import xavier_linear
from vadapt.nn.mlp import Mlp
from vadapt.nn.norms import LayerNorm
from vadapt.nn.tokens import Tokens
from vadapt.nn.trunk import run_blocks


class CrossAttention(nnx.Module):
    """Multi-head attention of some tokens to others; one projection gives keys, then values."""

    ROLES: ClassVar[dict[str, tuple[str, ...]]] = {
        "q": ("q",),
        "kv": ("k", "v"),
        "proj": ("attn_out",),
    }

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.q = xavier_linear(width, width, rngs=rngs)
        self.kv = xavier_linear(width, 2 * width, rngs=rngs)
        self.proj = xavier_linear(width, width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b m d"], others: Float[Array, "b n d"]
    ) -> Float[Array, "b m d"]:
        queries = rearrange(self.q(x), "b m (h d) -> b m h d", h=self.num_heads)
        kv = rearrange(self.kv(others), "b n (t h d) -> t b n h d", t=2, h=self.num_heads)
        out = attention(queries, kv[0], kv[1])
        return self.proj(rearrange(out, "b m h d -> b m (h d)"))


class PromptingBlock(nnx.Module):
    """A block that updates the removed tokens from themselves and from the fixed ones.

    The fixed tokens come as they are, not normalised, the same for every block. Attention does
    not see the order of its keys, so that they need not be put back into raster order.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        norm_epsilon: float = 1e-6,
        rngs: nnx.Rngs,
    ):
        self.attn = Branch(
            LayerNorm(width, epsilon=norm_epsilon), CrossAttention(width, num_heads, rngs=rngs)
        )
        self.mlp = Branch(
            LayerNorm(width, epsilon=norm_epsilon), Mlp(width, int(width * mlp_ratio), rngs=rngs)
        )

    def __call__(
        self, removed: Float[Array, "b m d"], key: OptionalKey, fixed: Float[Array, "b k1 d"]
    ) -> Float[Array, "b m d"]:
        """The removed tokens, updated; `key` is what all blocks take, nothing here is random."""
        hidden = self.attn.norm(removed)
        removed = removed + self.attn.inner(hidden, jnp.concatenate([fixed, hidden], axis=1))
        return removed + self.mlp(removed)


class PromptingDecoder(MAEDecoder):
    """MAE's decoder with `PromptingBlock`s; predicts every token, the class token included.

    What it predicts for class token and visible patches is a function of the encoder's output
    and of `embed` and `pred` alone: a loss on all tokens reaches the encoder directly.

    Source: MILAN, arXiv:2208.06049; the unnormalised prompts as in PAD's released code.
    """

    block_type = PromptingBlock

    def __call__(
        self,
        latent: Float[Array, "b k1 d"],
        restore_ids: Int[Array, "b n"],
        grid: tuple[int, int] | None = None,
    ) -> Float[Array, "b n1 p"]:
        """Predicted numbers of the class token and of every patch in raster order."""
        x = self.fill(latent, restore_ids, grid)
        num_fixed = latent.shape[1]
        order = jnp.argsort(restore_ids, axis=1)
        shuffled = jnp.take_along_axis(x[:, 1:], order[..., None], axis=1)
        shuffled = jnp.concatenate([x[:, :1], shuffled], axis=1)
        fixed, removed = shuffled[:, :num_fixed], shuffled[:, num_fixed:]
        passed = run_blocks(self.blocks, Tokens(removed), context=lambda x: (fixed,))
        removed = passed.x.array
        shuffled = jnp.concatenate([fixed, removed], axis=1)
        patches = jnp.take_along_axis(shuffled[:, 1:], restore_ids[..., None], axis=1)
        return self.pred(self.norm(jnp.concatenate([shuffled[:, :1], patches], axis=1)))
