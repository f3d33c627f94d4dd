"""Pixel reconstruction: patches as vectors, and the masked error of masked autoencoding."""

from __future__ import annotations

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vadapt.errors import ShapeError


def patchify(images: Float[Array, "b h w c"], patch_size: int) -> Float[Array, "b n p"]:
    """Every patch as one vector in the order (row, column, channel), channel fastest.

    Raises:
        ShapeError: a side is not a multiple of the patch size.
    """
    height, width = images.shape[1:3]
    if height % patch_size or width % patch_size:
        raise ShapeError(
            f"image is {height}x{width}, not a multiple of the patch size {patch_size}"
        )
    return rearrange(images, "b (h p) (w q) c -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(
    patches: Float[Array, "b n p"], patch_size: int, grid: tuple[int, int]
) -> Float[Array, "b h w c"]:
    """The inverse of `patchify` on a grid of (rows, columns) patches."""
    return rearrange(
        patches,
        "b (h w) (p q c) -> b (h p) (w q) c",
        h=grid[0],
        w=grid[1],
        p=patch_size,
        q=patch_size,
    )


def normalise_patches(
    patches: Float[Array, "b n p"], epsilon: float = 1e-6
) -> Float[Array, "b n p"]:
    """Each patch with mean 0 and variance 1, by the unbiased variance (p - 1), in float32."""
    patches = patches.astype(jnp.float32)
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return (patches - mean) / jnp.sqrt(variance + epsilon)


def masked_mse(
    prediction: Float[Array, "b n p"], target: Float[Array, "b n p"], mask: Float[Array, "b n"]
) -> Float[Array, ""]:
    """Mean squared error of the removed patches over the whole batch, in float32.

    Args:
        mask: 1 for removed patches, 0 for visible ones; all zero gives 0, not NaN.

    Source: MAE, arXiv:2111.06377, section 3.
    """
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    per_patch = jnp.square(error).mean(axis=-1)
    return (per_patch * mask).sum() / jnp.maximum(mask.sum(), 1.0)
