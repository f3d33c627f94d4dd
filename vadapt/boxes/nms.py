"""Non-maximum suppression class by class, in static shapes on the device."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vadapt.boxes.geometry import iou


class Detections(NamedTuple):
    """What was found, best first; rows that are not valid hold zeros."""

    boxes: Float[Array, "*b k 4"]
    scores: Float[Array, "*b k"]
    classes: Int[Array, "*b k"]
    valid: Bool[Array, "*b k"]
    rows: Int[Array, "*b k"]  # of the boxes that were given


def suppress(
    boxes: Float[Array, "*b n 4"],
    scores: Float[Array, "*b n k"],
    *,
    threshold: float,
    least: float,
    most: int,
) -> Detections:
    """Greedy suppression: the best pair of a box and a class stays, overlapping ones of it go.

    It ends when nothing, or `most`, is found; equal scores go by box, then by class. A turn reads
    all scores of an image once, and takes n overlaps.

    Args:
        scores: of every class for every box.
        threshold: overlaps (IoU) above it suppress, within a class.
        least: pairs of this score or less are none.
        most: number of detections of an image.
    """
    *lead, n, num_classes = scores.shape
    boxes, scores = boxes.astype(jnp.float32), scores.astype(jnp.float32)

    def one(boxes: Array, scores: Array) -> Detections:
        def turn(left: Array, _: None) -> tuple[Array, tuple[Array, ...]]:
            best = jnp.argmax(left.reshape(-1)).astype(jnp.int32)
            row, found_class = best // num_classes, best % num_classes
            score = left.reshape(-1)[best]
            gone = iou(boxes, boxes[row][None]) > threshold
            gone = gone | (jnp.arange(n) == row)  # also where a box has no area
            of_class = jnp.arange(num_classes) == found_class
            left = jnp.where(gone[:, None] & of_class[None], -jnp.inf, left)
            return left, (boxes[row], score, found_class, score > -jnp.inf, row)

        first = jnp.where(scores > least, scores, -jnp.inf)
        _, found = jax.lax.scan(turn, first, length=most)
        valid = found[3]

        def kept(x: Array) -> Array:
            there = valid.reshape(-1, *(1,) * (x.ndim - 1))
            return jnp.where(there, x, jnp.zeros_like(x))

        return Detections(*map(kept, found))

    flat = jax.vmap(one)(boxes.reshape(-1, n, 4), scores.reshape(-1, n, num_classes))
    return Detections(*(x.reshape(*lead, *x.shape[1:]) for x in flat))
