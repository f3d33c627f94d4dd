"""Boxes in the terms in which heads predict them, and back."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MOST_GROWTH = abs(math.log(16 / 1000))  # of a logarithm of a side's growth


class DeltaCoder(NamedTuple):
    """Shifts of the center in sides of the anchor, and logarithms of the sides' growth.

    Args:
        means, stds: what codes (dx, dy, dw, dh) are normalized by.
    """

    means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)

    def encode(
        self, anchors: Float[Array, "*b 4"], boxes: Float[Array, "*b 4"]
    ) -> Float[Array, "*b 4"]:
        """Codes of boxes; not finite for a side of 0."""
        (start, size), (middle, side) = _centered(anchors), _centered(boxes)
        codes = jnp.concatenate([(middle - start) / size, jnp.log(side / size)], axis=-1)
        return (codes - _row(self.means, codes)) / _row(self.stds, codes)

    def decode(
        self, anchors: Float[Array, "*b 4"], codes: Float[Array, "*b 4"]
    ) -> Float[Array, "*b 4"]:
        """Boxes of codes; sides grow at most by 1000 / 16, and shrink by as much."""
        start, size = _centered(anchors)
        codes = codes * _row(self.stds, codes) + _row(self.means, codes)
        middle = start + codes[..., :2] * size
        half = 0.5 * size * jnp.exp(jnp.clip(codes[..., 2:], -MOST_GROWTH, MOST_GROWTH))
        return jnp.concatenate([middle - half, middle + half], axis=-1)


class TBLRCoder(NamedTuple):
    """Distances of top, bottom, left and right from the anchor's center, in its sides.

    Args:
        normalizer: what these are divided by, besides.
    """

    normalizer: float = 4.0

    def encode(
        self, anchors: Float[Array, "*b 4"], boxes: Float[Array, "*b 4"]
    ) -> Float[Array, "*b 4"]:
        """Codes of boxes."""
        (x, y), unit = self._frame(anchors)
        left, top, right, bottom = jnp.moveaxis(boxes, -1, 0)
        return jnp.stack([y - top, bottom - y, x - left, right - x], axis=-1) / unit

    def decode(
        self, anchors: Float[Array, "*b 4"], codes: Float[Array, "*b 4"]
    ) -> Float[Array, "*b 4"]:
        """Boxes of codes."""
        (x, y), unit = self._frame(anchors)
        top, bottom, left, right = jnp.moveaxis(codes * unit, -1, 0)
        return jnp.stack([x - left, y - top, x + right, y + bottom], axis=-1)

    def _frame(self, anchors: Array) -> tuple[tuple[Array, Array], Array]:
        middle, size = _centered(anchors)
        width, height = size[..., 0], size[..., 1]
        unit = jnp.stack([height, height, width, width], axis=-1) * self.normalizer
        return (middle[..., 0], middle[..., 1]), unit


def encode_distances(
    points: Float[Array, "*#b 2"],
    boxes: Float[Array, "*#b 4"],
    most: float | None = None,
    margin: float = 0.1,
) -> Float[Array, "*#b 4"]:
    """Distances of a box's left, top, right and bottom from a point.

    Args:
        most: with it, distances lie in 0 to `most` - `margin`.
    """
    found = [points - boxes[..., :2], boxes[..., 2:] - points]
    found = jnp.concatenate(found, axis=-1)
    return found if most is None else jnp.clip(found, 0.0, most - margin)


def decode_distances(
    points: Float[Array, "*b 2"], distances: Float[Array, "*b 4"]
) -> Float[Array, "*b 4"]:
    """The inverse of `encode_distances`."""
    first, last = distances[..., :2], distances[..., 2:]
    return jnp.concatenate([points - first, points + last], axis=-1)


def expected_distances(logits: Float[Array, "*b n"], bins: int) -> Float[Array, "*b 4"]:
    """Expectations of four distributions over 0, 1, ... `bins` - 1, from their logits in a row.

    Source: arXiv:2006.04388.
    """
    shares = jax.nn.softmax(logits.reshape(*logits.shape[:-1], 4, bins), axis=-1)
    return (shares * _row(tuple(range(bins)), shares)).sum(axis=-1)


def _centered(boxes: Array) -> tuple[Array, Array]:
    """Middles and sides, (x, y) each."""
    return (boxes[..., :2] + boxes[..., 2:]) * 0.5, boxes[..., 2:] - boxes[..., :2]


def _row(numbers: tuple[float, ...], like: Array) -> Array:
    """Numbers along the last axis."""
    return jnp.asarray(numbers, like.dtype).reshape((1,) * (like.ndim - 1) + (-1,))
