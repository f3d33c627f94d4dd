"""Areas, overlaps and clipping of boxes; no pixel is added to a side.

Functions of two sets of boxes broadcast: `iou(a, b)` compares box by box, `iou(a[:, None],
b[None])` all pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

EPSILON = 1e-6  # the least that an overlap is divided by

Boxes = Float[Array, "*#b 4"]


class ImageSizes(NamedTuple):
    """(height, width) of each image of a batch, in pixels.

    Args:
        padded: with the image's own padding; the batch may be padded further.
        real: without any padding.
    """

    padded: Int[Array, "b 2"]
    real: Int[Array, "b 2"]

    @classmethod
    def whole(cls, batch: int, size: tuple[int, int]) -> ImageSizes:
        """Images without padding."""
        sizes = jnp.broadcast_to(jnp.asarray(size, jnp.int32)[None], (batch, 2))
        return cls(sizes, sizes)


def areas(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b"]:
    """Width times height."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def centers(boxes: Float[Array, "*b 4"]) -> Float[Array, "*b 2"]:
    """(x, y) of the middles."""
    return (boxes[..., :2] + boxes[..., 2:]) * 0.5


def intersections(a: Boxes, b: Boxes) -> Float[Array, "*#b"]:
    """Areas that boxes have in common."""
    width = jnp.minimum(a[..., 2], b[..., 2]) - jnp.maximum(a[..., 0], b[..., 0])
    height = jnp.minimum(a[..., 3], b[..., 3]) - jnp.maximum(a[..., 1], b[..., 1])
    return jnp.maximum(width, 0.0) * jnp.maximum(height, 0.0)


def iou(a: Boxes, b: Boxes) -> Float[Array, "*#b"]:
    """Intersection over union, of which the latter is at least `EPSILON`."""
    common = intersections(a, b)
    return common / _union(a, b, common)


def iof(a: Boxes, b: Boxes) -> Float[Array, "*#b"]:
    """Share of `a` that `b` covers."""
    return intersections(a, b) / jnp.maximum(areas(a), EPSILON)


def giou(a: Boxes, b: Boxes) -> Float[Array, "*#b"]:
    """IoU, minus the share of the smallest box around both that neither covers.

    Source: arXiv:1902.09630.
    """
    common = intersections(a, b)
    union = _union(a, b, common)
    width = jnp.maximum(a[..., 2], b[..., 2]) - jnp.minimum(a[..., 0], b[..., 0])
    height = jnp.maximum(a[..., 3], b[..., 3]) - jnp.minimum(a[..., 1], b[..., 1])
    around = jnp.maximum(jnp.maximum(width, 0.0) * jnp.maximum(height, 0.0), EPSILON)
    return common / union - (around - union) / around


def _union(a: Array, b: Array, common: Array) -> Array:
    return jnp.maximum(areas(a) + areas(b) - common, EPSILON)


def clip(boxes: Float[Array, "*b 4"], size: Num[Array, "*#b 2"]) -> Float[Array, "*b 4"]:
    """Boxes cut at the borders of images of `size`, (height, width)."""
    edges = size[..., ::-1].astype(boxes.dtype)
    limits = jnp.concatenate([edges, edges], axis=-1)
    return jnp.minimum(jnp.maximum(boxes, 0.0), limits)


def scale(boxes: Float[Array, "*b 4"], factor: float) -> Float[Array, "*b 4"]:
    """Boxes with the same centers whose sides are `factor` times as long."""
    middle, half = centers(boxes), (boxes[..., 2:] - boxes[..., :2]) * (0.5 * factor)
    return jnp.concatenate([middle - half, middle + half], axis=-1)
