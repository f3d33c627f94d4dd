"""Attention between the levels of a pyramid: over cells of space, or over planes of channels.

Every level gives a map of queries, keys and values. In space, a group holds, of every level, the
places of one cell of the coarsest map and a halo around them. In channels, it holds, of every
level, the planes at the coarsest map's resolution into which one channel falls, and a few of its
neighbors'. Groups overlap, and where they do, what they give is summed.

Source: CFPT, arXiv:2407.19696, and its released code.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vadapt.errors import ShapeError
from vadapt.kernels import cross_layer_attention_tpu
from vadapt.sharding import over_batch

Maps = Sequence[Float[Array, "b _h _w _c"]]
Bias = Float[Array, "heads n n"]
SMALLEST = 1e-12  # norm that a vector is divided by


def spatial_attention(maps: Maps, bias: Bias, *, overlap: int = 1) -> tuple[Array, ...]:
    """Attention among the places of all levels in one cell of the coarsest.

    A logit is the cosine of a query and a key, without a temperature, plus the bias; logits and
    softmax are in float32. Places outside a map are zeros, and take part: their logit is the bias
    alone. The backward pass keeps the maps, and no logits.

    Args:
        maps: queries, keys and values of each level, [b, h, w, 3 heads d]; the finest first, each
            half the size of the one before, rounded up.
        bias: of the n places of a group, level after level, row by row.
        overlap: places by which a window is larger than its cell, odd. One gives a cell the row
            above it and the column to its left.

    Returns:
        A map [b, h, w, heads d] for each level, of the type of the maps.

    Raises:
        ShapeError: sizes that do not go together.
    """
    sides = spatial_windows(len(maps), overlap)
    _check(maps, bias, [side**2 for side in sides])

    def run(*given: Array) -> tuple[Array, ...]:
        *maps, bias = given
        return _spatial(tuple(maps), bias, sides)

    return over_batch(run, *maps, whole=bias)


def channel_attention(maps: Maps, bias: Bias, *, overlap: int = 1) -> tuple[Array, ...]:
    """Attention among the planes of all levels of one channel; the features are the places.

    As `spatial_attention` in all else. A level of r times the coarsest's sides has r * r planes of
    a channel. Maps that are smaller than that are filled up with zeros at their ends.

    Windows of neighboring channels overlap, and run through queries, keys and values as one: the
    first window of the keys holds a plane of the queries, the first of the values one of the keys.

    Args:
        overlap: planes by which a window is larger than its channel, odd. One gives a channel the
            last plane of the one before.
    """
    sizes = channel_windows(len(maps), overlap)
    _check(maps, bias, sizes)
    return jax.checkpoint(functools.partial(channel, sizes=sizes))(tuple(maps), bias)


def ratios(levels: int) -> tuple[int, ...]:
    """How many times the coarsest map's side each level has, the finest first."""
    return tuple(2**i for i in reversed(range(levels)))


def spatial_windows(levels: int, overlap: int = 1) -> tuple[int, ...]:
    """Sides of the windows of space, by level.

    >>> spatial_windows(4)
    (9, 5, 3, 1)
    """
    return tuple(r + overlap if r > 1 else overlap for r in ratios(levels))


def channel_windows(levels: int, overlap: int = 1) -> tuple[int, ...]:
    """Numbers of planes in the windows of channels, by level.

    >>> channel_windows(4)
    (65, 17, 5, 1)
    """
    return tuple(r * r + overlap if r > 1 else overlap for r in ratios(levels))


def spatial(maps: tuple[Array, ...], bias: Array, sides: tuple[int, ...]) -> tuple[Array, ...]:
    """`spatial_attention` in plain JAX."""
    _, *grid, _ = maps[-1].shape
    parts = [
        functools.partial(cells, grid=grid, ratio=r, side=side)
        for r, side in zip(ratios(len(maps)), sides, strict=True)
    ]
    tokens = jnp.concatenate([part(x) for part, x in zip(parts, maps, strict=True)], axis=2)
    q, k, v = rearrange(tokens, "b m n (p h d) -> p b m h n d", p=3, h=len(bias))
    out = rearrange(cosine_attention(q, k, v, bias[None, None]), "b m h n d -> b m n (h d)")
    return _restored(out, parts, maps, [side**2 for side in sides])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _spatial(maps: tuple[Array, ...], bias: Array, sides: tuple[int, ...]) -> tuple[Array, ...]:
    plain = functools.partial(spatial, sides=sides)
    return _either(plain, cross_layer_attention_tpu.attend, sides, maps, bias)


def _forward(maps: tuple[Array, ...], bias: Array, sides: tuple[int, ...]) -> tuple[Any, Any]:
    return _spatial(maps, bias, sides), (maps, bias)


def _backward(sides: tuple[int, ...], kept: Any, ways: Sequence[Array]) -> Any:
    def plain(maps: tuple[Array, ...], bias: Array, ways: tuple[Array, ...]) -> Any:
        _, pull = jax.vjp(functools.partial(spatial, sides=sides), maps, bias)
        return pull(ways)

    return _either(plain, cross_layer_attention_tpu.gradients, sides, *kept, tuple(ways))


_spatial.defvjp(_forward, _backward)


def _either(
    plain: Callable[..., Any],
    tpu: Callable[..., Any],
    sides: tuple[int, ...],
    maps: tuple[Array, ...],
    bias: Array,
    *ways: Any,
) -> Any:
    """The form that suits the platform; the kernel's windows overlap by one."""
    if sides[-1] != 1 or not cross_layer_attention_tpu.fits(maps, len(bias)):
        return plain(maps, bias, *ways)
    return jax.lax.platform_dependent(maps, bias, *ways, tpu=tpu, default=plain)


def channel(maps: tuple[Array, ...], bias: Array, sizes: tuple[int, ...]) -> tuple[Array, ...]:
    """`channel_attention` in plain JAX."""
    _, *grid, _ = maps[-1].shape

    def part(x: Array, ratio: int, size: int) -> Array:
        return windows(planes(x, grid, ratio), 1, x.shape[3], ratio**2, size)

    parts = [
        functools.partial(part, ratio=r, size=size)
        for r, size in zip(ratios(len(maps)), sizes, strict=True)
    ]
    tokens = jnp.concatenate([part(x) for part, x in zip(parts, maps, strict=True)], axis=2)
    q, k, v = rearrange(tokens, "b (p h c) n m -> p b h c n m", p=3, h=len(bias))
    out = rearrange(cosine_attention(q, k, v, bias[None, :, None]), "b h c n m -> b (h c) n m")
    return _restored(out, parts, maps, sizes)


def cosine_attention(
    queries: Float[Array, "*b n d"],
    keys: Float[Array, "*b n d"],
    values: Float[Array, "*b n d"],
    bias: Float[Array, "... n n"],
) -> Float[Array, "*b n d"]:
    """Values, weighed by the softmax of cosines plus the bias; both in float32."""
    logits = jnp.einsum("...nd,...md->...nm", queries, keys, preferred_element_type=jnp.float32)
    logits = logits * _inverse_norms(queries)[..., :, None] * _inverse_norms(keys)[..., None, :]
    weights = jax.nn.softmax(logits + bias.astype(jnp.float32), axis=-1)
    return jnp.einsum("...nm,...md->...nd", weights.astype(values.dtype), values)


def _inverse_norms(x: Float[Array, "*b n d"]) -> Float[Array, "*b n"]:
    """Finite for zeros, as is its gradient."""
    squares = jnp.square(x.astype(jnp.float32)).sum(axis=-1)
    return jax.lax.rsqrt(jnp.maximum(squares, SMALLEST**2))


def cells(
    x: Float[Array, "b h w c"], grid: Sequence[int], ratio: int, side: int
) -> Float[Array, "b m n c"]:
    """The places in the window of every cell of a grid, row by row."""
    rows = windows(x, 1, grid[0], ratio, side)
    both = windows(rows, 3, grid[1], ratio, side)
    return rearrange(both, "b i y j x c -> b (i j) (y x) c")


def planes(x: Float[Array, "b h w c"], grid: Sequence[int], ratio: int) -> Float[Array, "b p m"]:
    """Every channel's planes of the grid's size, one after another: space to depth."""
    (h, w), (rows, columns) = x.shape[1:3], (ratio * side for side in grid)
    x = jnp.pad(x, ((0, 0), (0, rows - h), (0, columns - w), (0, 0)))
    return rearrange(x, "b (i y) (j x) c -> b (c y x) (i j)", y=ratio, x=ratio)


def windows(x: Array, axis: int, count: int, stride: int, size: int) -> Array:
    """Overlapping windows along an axis, which becomes two: windows, and places in them.

    What windows reach beyond the places is zeros, as much before as behind, or one more before.
    """
    shape, places = x.shape, x.shape[axis]
    beyond = stride * (count - 1) + size - places
    before = (beyond + 1) // 2
    # A window is a few strides in a row, the last of them cut off.
    pieces = -(-size // stride)
    strides = count - 1 + pieces
    padding = [(0, 0)] * x.ndim
    padding[axis] = (before, strides * stride - before - places)
    x = jnp.pad(x, padding).reshape(*shape[:axis], strides, stride, *shape[axis + 1 :])
    parts = []
    for i in range(pieces):
        part = jax.lax.slice_in_dim(x, i, i + count, axis=axis)
        parts.append(jax.lax.slice_in_dim(part, 0, min(stride, size - i * stride), axis=axis + 1))
    return jnp.concatenate(parts, axis=axis + 1)


def summed(part: Callable[[Array], Array], tokens: Array, shape: Sequence[int]) -> Array:
    """An array of this shape, at whose places what stands in windows is summed.

    Args:
        part: makes such windows of such an array. What it repeats is summed, and what it adds is
            left out: the transpose of what it does.
    """
    (x,) = jax.linear_transpose(part, jax.ShapeDtypeStruct(tuple(shape), tokens.dtype))(tokens)
    return x


def _restored(
    tokens: Float[Array, "b g n c"],
    parts: Sequence[Callable[[Array], Array]],
    maps: Sequence[Array],
    sizes: Sequence[int],
) -> tuple[Array, ...]:
    """Tokens of all levels, of so many places each, as maps of a third of the channels."""
    ends = list(itertools.accumulate(sizes))
    return tuple(
        summed(part, tokens[:, :, end - size : end], (*x.shape[:3], x.shape[3] // 3))
        for part, x, size, end in zip(parts, maps, sizes, ends, strict=True)
    )


def _check(maps: Maps, bias: Array, sizes: Sequence[int]) -> None:
    shapes, (heads, places, _) = [x.shape for x in maps], bias.shape
    coarsest = shapes[-1][1:3]
    for shape, r in zip(shapes, ratios(len(maps)), strict=True):
        if tuple(-(-side // r) for side in shape[1:3]) != coarsest:
            sides = ", ".join(f"{h}x{w}" for _, h, w, _ in shapes)
            raise ShapeError(
                f"levels of {sides} places: each must have half the sides of the one before, "
                "rounded up. Pad the image to a multiple of the coarsest level's stride"
            )
    if min(sizes) < 1 or sum(sizes) != places:
        raise ShapeError(f"the bias is for {places} tokens; windows of {sizes} have {sum(sizes)}")
    if any(shape[3] % (3 * heads) for shape in shapes):
        raise ShapeError(f"{shapes[0][3]} channels are no queries, keys, values of {heads} heads")
