"""Which ground truth each anchor answers for: by overlap (RetinaNet), ATSS, center regions (FSAF).

All are of one image, exact, and read ground truths in groups of `CHUNK`, so that of the anchors x
ground truths matrices only CHUNK rows exist at a time: for 209k anchors 13 MB each instead of 400
for 500 ground truths. Results stand for the row of a ground truth, or are one of:
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vadapt.boxes.coders import encode_distances
from vadapt.boxes.geometry import areas, centers, iof, iou, scale

BACKGROUND = -1  # a negative
IGNORED = -2  # neither positive nor negative
CHUNK = 16  # ground truths at a time

Rows = Int[Array, " n"]


class Overlapping(NamedTuple):
    """Result of `by_overlap`."""

    rows: Rows
    overlaps: Float[Array, " n"]  # IoU with the nearest ground truth; -1 where not `among`


class Centered(NamedTuple):
    """Result of `by_center`."""

    rows: Rows
    ignored: Bool[Array, "n k"]  # classes that do not count as wrong there


def by_overlap(
    anchors: Float[Array, "n 4"],
    boxes: Float[Array, "m 4"],
    valid: Bool[Array, " m"],
    *,
    among: Bool[Array, " n"] | None = None,
    positive: float = 0.5,
    negative: float = 0.4,
    least: float = 0.0,
    tolerance: float = 0.0,
) -> Overlapping:
    """Assign anchors by IoU, and to every ground truth its best anchors, whatever their IoU.

    All anchors whose IoU with a ground truth equals the best one of it are its own; a later ground
    truth takes them from an earlier one. A small object lies inside of many anchors of one area:
    which of these are equal is then a matter of float32's rounding. A ground truth that meets no
    anchor has a best IoU of 0: unless `least` is above 0, all anchors that meet nothing are its.

    Args:
        among: anchors that take part; all others are ignored.
        positive, negative: from which IoU on, and below which, an anchor is one.
        least: best IoU from which on a ground truth has its best anchors.
        tolerance: how far below the best an IoU may be to count as equal; 0 as published.

    Source: mmdetection's MaxIoUAssigner, as RetinaNet (arXiv:1708.02002) uses it.
    """
    n = len(anchors)
    among = jnp.ones(n, bool) if among is None else among

    def chunk(carry: tuple[Array, ...], item: tuple[Array, ...]) -> Any:
        best, row, own = carry
        boxes, valid, numbers = item
        counts = valid[:, None] & among[None]
        # Computed once: the best and what equals it must be of the same rounding.
        found = jnp.where(counts, iou(boxes[:, None], anchors[None]), -1.0)
        found = jax.lax.optimization_barrier(found)
        nearest = found.max(axis=0)
        first = numbers[found.argmax(axis=0)]
        row = jnp.where(nearest > best, first, row)
        most = found.max(axis=1, keepdims=True)
        equal = counts & (found >= most - tolerance) & (most >= least)
        last = jnp.where(equal, numbers[:, None], -1).max(axis=0)
        return (jnp.maximum(best, nearest), row, jnp.where(last >= 0, last, own)), None

    none = jnp.full(n, -1, jnp.int32)
    best = jnp.where(among, 0.0, -1.0)
    carry = (best, none, none)
    (best, row, own), _ = jax.lax.scan(chunk, carry, _chunks(boxes, valid))
    rows = jnp.where(best < negative, BACKGROUND, IGNORED)
    rows = jnp.where(best >= positive, row, rows)
    rows = jnp.where(own >= 0, own, rows)
    return Overlapping(jnp.where(among, rows, IGNORED), best)


def covered(
    anchors: Float[Array, "n 4"],
    regions: Float[Array, "m 4"],
    valid: Bool[Array, " m"],
    *,
    share: float,
) -> Bool[Array, " n"]:
    """Anchors of which a region, such as an ignored one, covers more than this share."""

    def chunk(found: Array, item: tuple[Array, ...]) -> tuple[Array, None]:
        regions, valid, _ = item
        over = valid[:, None] & (iof(anchors[None], regions[:, None]) > share)
        return found | over.any(axis=0), None

    return jax.lax.scan(chunk, jnp.zeros(len(anchors), bool), _chunks(regions, valid))[0]


def by_statistics(
    levels: Sequence[Float[Array, "_ 4"]],
    boxes: Float[Array, "m 4"],
    valid: Bool[Array, " m"],
    *,
    among: Bool[Array, " n"] | None = None,
    nearest: int = 9,
) -> Rows:
    """Assign anchors by a threshold that each ground truth sets itself (ATSS).

    Its candidates are the anchors of each level with the nearest centers; those are positive whose
    IoU is at least the mean plus the standard deviation (of n - 1) of all candidates', and whose
    center lies inside, by more than 0.01 px. An anchor of several takes the one of highest IoU.

    Args:
        levels: anchors, level by level.
        among: anchors that take part; all others are ignored.
        nearest: candidates on a level, or all that there are.

    Source: arXiv:1912.02424, algorithm 1.
    """
    anchors = jnp.concatenate(list(levels))
    n, m = len(anchors), len(boxes)
    among = jnp.ones(n, bool) if among is None else among
    negative = jnp.where(among, BACKGROUND, IGNORED)
    if not m:
        return negative
    middles = centers(anchors)

    def wanted(item: tuple[Array, Array]) -> tuple[Array, Array]:
        """Candidates of a ground truth, and the IoU of those that are positive."""
        box, there = item
        far = middles - centers(box)[None]
        near = jnp.where(among, -jnp.sqrt(jnp.square(far).sum(axis=-1)), -jnp.inf)
        chosen, start = [], 0
        for level in levels:
            part = near[start : start + len(level)]
            chosen.append(start + jax.lax.top_k(part, min(nearest, len(level)))[1])
            start += len(level)
        candidates = jnp.concatenate(chosen)
        counts = among[candidates]
        overlaps = iou(anchors[candidates], box[None])
        number = counts.sum().astype(jnp.float32)
        mean = jnp.where(counts, overlaps, 0.0).sum() / number
        spread = jnp.where(counts, jnp.square(overlaps - mean), 0.0).sum() / (number - 1)
        edges = encode_distances(middles[candidates], box[None])
        good = (overlaps >= mean + jnp.sqrt(spread)) & (edges.min(axis=-1) > 0.01)
        return candidates, jnp.where(good & counts & there, overlaps, -1.0)

    candidates, overlaps = jax.lax.map(wanted, (boxes, valid), batch_size=min(CHUNK, m))
    best = jnp.full(n, -1.0).at[candidates].max(overlaps)
    wins = (overlaps >= 0) & (overlaps == best[candidates])
    numbers = jnp.where(wins, jnp.arange(m)[:, None], m)
    rows = jnp.full(n, m).at[candidates].min(numbers)
    return jnp.where(rows < m, rows, negative)


def by_center(
    anchors: Float[Array, "n 4"],
    boxes: Float[Array, "m 4"],
    classes: Int[Array, " m"],
    valid: Bool[Array, " m"],
    num_classes: int,
    *,
    among: Bool[Array, " n"] | None = None,
    core: float = 0.2,
    shadow: float = 0.2,
    least: float = 0.01,
) -> Centered:
    """Assign anchors to the ground truths in whose middle they lie (FSAF).

    An anchor is positive if its center is inside the box, whose core covers more than `least` of
    it. Of several it takes the one of the smallest area (of equal ones the last), and the others'
    classes are ignored there, as are those of boxes whose shadow covers as much of it, wherever its
    center lies; if that of the smallest is among these, the anchor is background.

    Args:
        among: anchors that take part; all others are ignored.
        core, shadow: sides of a box's core, and of the region around it whose class is ignored,
            in sides of the box.

    Source: mmdetection's CenterRegionAssigner; FSAF, arXiv:1903.00621.
    """
    n, middles = len(anchors), centers(anchors)
    among = jnp.ones(n, bool) if among is None else among

    def regions(boxes: Array, valid: Array) -> tuple[Array, Array]:
        """Whether anchors are in a box's core, and in its shadow without being in its core."""
        inside = (middles[None] > boxes[:, None, :2]) & (middles[None] < boxes[:, None, 2:])
        in_core, in_shadow = (
            valid[:, None] & among[None] & (iof(anchors[None], scale(boxes, side)[:, None]) > least)
            for side in (core, shadow)
        )
        in_core = in_core & inside.all(axis=-1)
        return in_core, in_shadow & ~in_core

    def win(
        carry: tuple[Array, Array], item: tuple[Array, ...]
    ) -> tuple[tuple[Array, Array], None]:
        smallest, row = carry
        boxes, valid, numbers = item
        size = jnp.where(regions(boxes, valid)[0], areas(boxes)[:, None], jnp.inf)
        least_size = size.min(axis=0)
        equal = size == least_size[None]
        last = jnp.where(equal, numbers[:, None], -1).max(axis=0)
        better = (least_size <= smallest) & (least_size < jnp.inf)
        return (jnp.where(better, least_size, smallest), jnp.where(better, last, row)), None

    chunks = _chunks(boxes, valid, classes)
    first = (jnp.full(n, jnp.inf), jnp.full(n, BACKGROUND, jnp.int32))
    (_, row), _ = jax.lax.scan(win, first, chunks[:3])

    def lose(ignored: Array, item: tuple[Array, ...]) -> tuple[Array, None]:
        boxes, valid, numbers, classes = item
        in_core, in_shadow = regions(boxes, valid)
        lost = in_shadow | (in_core & (numbers[:, None] != row[None]))
        of_class = classes[:, None] == jnp.arange(num_classes)[None]
        found = jnp.einsum("cn,ck->nk", lost.astype(jnp.float32), of_class.astype(jnp.float32))
        return ignored | (found > 0), None

    ignored, _ = jax.lax.scan(lose, jnp.zeros((n, num_classes), bool), chunks)
    mine = jnp.where(row >= 0, classes[jnp.maximum(row, 0)], -1) if len(boxes) else row
    both = (ignored & (mine[:, None] == jnp.arange(num_classes)[None])).any(axis=-1)
    row = jnp.where(both, BACKGROUND, row)
    return Centered(jnp.where(among, row, IGNORED), ignored)


def _chunks(boxes: Array, valid: Array, *more: Array) -> tuple[Array, ...]:
    """Boxes, their mask, their numbers and more, in groups of `CHUNK` or of all."""
    size = min(CHUNK, max(len(boxes), 1))
    number = max(-(-len(boxes) // size), 1)
    spare = number * size - len(boxes)
    rows = (boxes.astype(jnp.float32), valid, jnp.arange(len(boxes), dtype=jnp.int32), *more)
    padded = [jnp.pad(x, ((0, spare), *((0, 0),) * (x.ndim - 1))) for x in rows]
    return tuple(x.reshape(number, size, *x.shape[1:]) for x in padded)
