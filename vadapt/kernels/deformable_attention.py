"""Attention of each query to a few places of its own in maps of several sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vadapt.kernels.bilinear import around, places


def deformable_attention(
    values: Float[Array, "b n h d"],
    sizes: Sequence[tuple[int, int]],
    locations: Float[Array, "b q h l p 2"],
    weights: Float[Array, "b q h l p"],
) -> Float[Array, "b q h d"]:
    """Values read at each query's places, bilinearly, and summed by its weights, in float32.

    Args:
        values: of all levels one after the other, each in raster order.
        sizes: (rows, columns) of the levels.
        locations: (x, y) in 0 to 1 from the corners of a level's map; zero is read outside.
        weights: of the places.

    Source: Deformable DETR, arXiv:2010.04159.
    """
    return jax.checkpoint(_gathered, static_argnums=1)(values, tuple(sizes), locations, weights)


def _gathered(values: Array, sizes: tuple[tuple[int, int], ...], locations: Array, weights: Array):
    """One row of a table for each place: the four pixels around it."""
    b, _, heads, width = values.shape
    starts = [0, *_running(math.prod(size) for size in sizes)]
    tables, rows, shares, first = [], [], [], 0
    for level, size in enumerate(sizes):
        maps = values[:, starts[level] : starts[level + 1]]
        maps = rearrange(maps, "b (y x) h d -> (b h) y x d", y=size[0])
        tables.append(around(maps).reshape(b * heads, -1, 4, width))
        row, share = places(locations[:, :, :, level], size)
        rows.append(row + first)
        shares.append(share * weights[:, :, :, level, :, None].astype(jnp.float32))
        first += tables[-1].shape[1]
    row = rearrange(jnp.stack(rows, 3), "b q h l p -> (b h) (q l p)")
    share = rearrange(jnp.stack(shares, 3), "b q h l p c -> (b h) q (l p c)")
    table = jnp.concatenate(tables, axis=1)
    found = jnp.take_along_axis(table, row[..., None, None], axis=1, mode="clip")
    found = found.reshape(b * heads, share.shape[1], -1, width).astype(jnp.float32)
    out = jnp.einsum("nqs,nqsd->nqd", share, found, precision="highest")
    return rearrange(out, "(b h) q d -> b q h d", h=heads)


def _running(numbers):
    total = 0
    for number in numbers:
        total += number
        yield total
