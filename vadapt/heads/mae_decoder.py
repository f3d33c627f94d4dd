"""The decoder of masked autoencoding: predicts the pixels of every patch from the visible ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vadapt.nn.blocks import Block
from vadapt.nn.linear import xavier_linear
from vadapt.nn.norms import LayerNorm
from vadapt.nn.positions import resize_table, sincos_table
from vadapt.nn.tokens import Tokens
from vadapt.nn.trunk import run_blocks
from vadapt.partition import Constant, Head, mark


class MAEDecoder(nnx.Module):
    """Fills the removed places with a mask token, runs a narrow ViT, predicts each patch.

    All of it is a `Head`, but for `embed`, the projection from the encoder's width: PAD freezes
    it with the encoder (its released code selects what trains by name), so it stays a plain
    parameter.

    Args:
        patch_numbers: how many numbers a patch has, p * p * c.

    Source: MAE, arXiv:2111.06377, section 3.
    """

    block_type: ClassVar[Callable[..., nnx.Module]] = Block

    def __init__(
        self,
        encoder_width: int,
        grid: Sequence[int],
        patch_numbers: int,
        *,
        width: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_epsilon: float = 1e-6,
        rngs: nnx.Rngs,
    ):
        self.grid = (int(grid[0]), int(grid[1]))
        self.embed = xavier_linear(encoder_width, width, rngs=rngs)
        self.mask_token = Head(nnx.initializers.normal(0.02)(rngs.params(), (width,), jnp.float32))
        self.pos_embed = Constant(jnp.asarray(sincos_table(width, self.grid)))
        self.blocks = mark(
            nnx.List(
                [
                    self.block_type(
                        width,
                        num_heads,
                        mlp_ratio=mlp_ratio,
                        norm_epsilon=norm_epsilon,
                        rngs=rngs,
                    )
                    for _ in range(depth)
                ]
            ),
            Head,
        )
        self.norm = mark(LayerNorm(width, epsilon=norm_epsilon), Head)
        self.pred = mark(xavier_linear(width, patch_numbers, rngs=rngs), Head)

    def __call__(
        self,
        latent: Float[Array, "b k1 d"],
        restore_ids: Int[Array, "b n"],
        grid: tuple[int, int] | None = None,
    ) -> Float[Array, "b n p"]:
        """Predicted numbers of every patch in raster order.

        Args:
            latent: class token and visible tokens of the encoder, in the order they were kept.
            restore_ids: for each raster place, its number in the shuffled order (kept ones first).
            grid: (rows, columns) of patches; None for the grid the decoder was made for.
        """
        x = self.fill(latent, restore_ids, grid)
        x = run_blocks(self.blocks, Tokens(x, num_special=1)).x.array
        return self.pred(self.norm(x))[:, 1:]

    def fill(
        self,
        latent: Float[Array, "b k1 d"],
        restore_ids: Int[Array, "b n"],
        grid: tuple[int, int] | None = None,
    ) -> Float[Array, "b n1 e"]:
        """The decoder's input: all tokens in raster order, mask tokens where none was visible."""
        x = self.embed(latent)
        b, k1, d = x.shape
        num_removed = restore_ids.shape[1] - (k1 - 1)
        mask_token = self.mask_token[...].astype(x.dtype)
        removed = jnp.broadcast_to(mask_token, (b, num_removed, d))
        patches = jnp.concatenate([x[:, 1:], removed], axis=1)
        patches = jnp.take_along_axis(patches, restore_ids[..., None], axis=1)
        x = jnp.concatenate([x[:, :1], patches], axis=1)
        table = resize_table(self.pos_embed[...], self.grid, grid or self.grid)
        return x + table[None].astype(x.dtype)
