"""Bilinear reading of maps at free points; what lies outside a map is zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vadapt.errors import ShapeError


def sample(maps: Float[Array, "n h w c"], points: Float[Array, "n p 2"]) -> Float[Array, "n p c"]:
    """Maps read at points between their pixels, in float32.

    Only its arguments are kept for the backward pass.

    Args:
        points: (x, y) in 0 to 1 from the corners of a map, so that pixel (0, 0) has its centre at
            (0.5 / w, 0.5 / h); others lie outside, where all is zero.
    """
    # Rows of a single number are what TPUs take slowest, and products with it what they do best.
    tpu = multiplied if maps.shape[-1] == 1 else gathered

    def either(maps: Array, points: Array) -> Array:
        return jax.lax.platform_dependent(maps, points, tpu=tpu, default=gathered)

    maps, points = jnp.asarray(maps, jnp.float32), jnp.asarray(points, jnp.float32)
    return jax.checkpoint(either)(maps, points)


def gathered(maps: Float[Array, "n h w c"], points: Float[Array, "n p 2"]) -> Float[Array, "n p c"]:
    """`sample` by a table of the four pixels around each place, so that a point costs one row."""
    n, h, w, c = maps.shape
    rows = around(maps).reshape(n, -1, 4, c)
    place, weights = places(points, (h, w))
    found = jnp.take_along_axis(rows, place[..., None, None], axis=1, mode="clip")
    return jnp.einsum("npkc,npk->npc", found, weights, precision="highest")


def multiplied(
    maps: Float[Array, "n h w c"], points: Float[Array, "n p 2"]
) -> Float[Array, "n p c"]:
    """`sample` by products with all columns, then with all rows."""
    _, h, w, _ = maps.shape
    column, row = hat(points[..., 0], w, axis=2), hat(points[..., 1], h, axis=2)
    lines = jnp.einsum("npx,nyxc->npyc", column, maps, precision="highest")
    return (lines * row[..., None]).sum(axis=2)


def hat(x: Float[Array, "*n"], size: int, *, axis: int) -> Float[Array, "*m"]:
    """Each pixel's share of a place on a side of `size` pixels, along a new axis."""
    pixels = jnp.arange(size, dtype=jnp.float32)
    shape = [size if i == axis else 1 for i in range(x.ndim + 1)]
    past = jnp.expand_dims(x * size - 0.5, axis) - pixels.reshape(shape)
    before = jnp.where((past >= -1) & (past < 0), 1 + past, 0.0)
    return jnp.where((past >= 0) & (past < 1), 1 - past, before)


def sample_labels(
    labels: Int[Array, "n h w"], points: Float[Array, "n p 2"], num_classes: int
) -> Float[Array, "n p k"]:
    """A label map's one-hot maps read at points, exactly; a label beyond the classes has none.

    The four labels around a place are the four bytes of one number, so that no one-hot map of full
    size is made, and a point costs one number.

    Raises:
        ShapeError: more than 255 classes, which a byte does not hold.
    """
    _, h, w = labels.shape
    place, weights = places(points, (h, w))
    found = corner_labels(labels, place, num_classes)
    hot = jax.nn.one_hot(found, num_classes, dtype=jnp.float32)
    return jnp.einsum("npck,npc->npk", hot, weights, precision="highest")


def sample_label(
    labels: Int[Array, "n h w"], points: Float[Array, "n k p 2"]
) -> Float[Array, "n k p"]:
    """As `sample_labels`, where points [:, k] are for class k alone."""
    n, num_classes, p, _ = points.shape
    _, h, w = labels.shape
    place, weights = places(points.reshape(n, -1, 2), (h, w))
    found = corner_labels(labels, place, num_classes).reshape(n, num_classes, p, 4)
    same = found == jnp.arange(num_classes)[None, :, None, None]
    return jnp.where(same, weights.reshape(found.shape), 0.0).sum(axis=-1)


def corner_labels(
    labels: Int[Array, "n h w"], place: Int[Array, "n p"], num_classes: int
) -> Int[Array, "n p 4"]:
    """The labels around places of `places`; 255 for those of no class and outside the map."""
    if num_classes > 255:
        raise ShapeError(f"labels of {num_classes} classes do not fit a byte")
    is_class = (labels >= 0) & (labels < num_classes)
    shifted = jnp.where(is_class, labels - 255, 0)[..., None]  # zero is what lies outside
    corners = jnp.split(around(shifted) + 255, 4, axis=-1)
    shifts = (0, 8, 16, 24)
    words = sum(
        (
            jnp.left_shift(x[..., 0].astype(jnp.uint32), s)
            for x, s in zip(corners, shifts, strict=True)
        ),
        jnp.zeros((), jnp.uint32),
    )
    found = jnp.take_along_axis(words.reshape(labels.shape[0], -1), place, axis=1, mode="clip")
    return jnp.stack([(found >> s) & 255 for s in shifts], axis=-1).astype(jnp.int32)


def around(maps: Array) -> Array:
    """The four pixels around every corner of pixels, [n, h + 1, w + 1, 4 c], zero outside."""
    padded = jnp.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
    above, below = padded[:, :-1], padded[:, 1:]
    corners = [above[:, :, :-1], above[:, :, 1:], below[:, :, :-1], below[:, :, 1:]]
    return jnp.concatenate(corners, axis=-1)


def places(
    points: Float[Array, "*n 2"], size: tuple[int, int]
) -> tuple[Int[Array, "*n"], Float[Array, "*n 4"]]:
    """For each point its row in `around`, flattened, and the weights of the four pixels there."""
    column, (left, right) = _between(points[..., 0], size[1])
    row, (upper, lower) = _between(points[..., 1], size[0])
    weights = [upper * left, upper * right, lower * left, lower * right]
    return row * (size[1] + 1) + column, jnp.stack(weights, axis=-1)


def _between(x: Array, size: int) -> tuple[Array, tuple[Array, Array]]:
    """The number of the gap between pixels, from 0 before the first, and both sides' weights."""
    x = x.astype(jnp.float32) * size - 0.5
    before = jnp.floor(x)
    inside = (before >= -1) & (before < size)
    gap = jnp.where(inside, before + 1, 0.0).astype(jnp.int32)
    after = x - jax.lax.stop_gradient(before)
    return gap, (jnp.where(inside, 1.0 - after, 0.0), jnp.where(inside, after, 0.0))
