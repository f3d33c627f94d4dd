"""Large pictures in tiles: where these lie, which boxes each has, and detections of all as one.

Boxes are (left, top, right, bottom) in pixels, ends exclusive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from vadapt.data.resampling import Size
from vadapt.errors import ConfigError

# Which boxes stay, of the sides of their parts in the tile, [n, 2], and of the whole boxes.
KeepRule = Callable[[np.ndarray, np.ndarray], np.ndarray]


def tile_corners(
    image: Size, tile: Size, overlap: Size, *, fixed: bool = True
) -> Int[np.ndarray, "n 4"]:
    """The tiles of an image of (height, width), row by row.

    Args:
        overlap: pixels that neighbors share, at least.
        fixed: the last tile of an axis is shifted back into the image, so that all have the size
            of `tile`; else it ends where the image does. An image smaller than a tile is one.

    Raises:
        ConfigError: the overlap is as large as the tile.

    >>> tile_corners((1080, 1920), (512, 512), (154, 154))[-1].tolist()
    [1408, 568, 1920, 1080]
    """
    if min(image) < 1 or any(not 0 <= o < t for o, t in zip(overlap, tile, strict=True)):
        raise ConfigError(
            f"an image {image} in tiles {tile} that share {overlap}: all are (height, width) in "
            "pixels, and less is shared than a tile has"
        )
    rows, columns = (_starts(*sides, fixed) for sides in zip(image, tile, overlap, strict=True))
    corners = [
        (x, y, min(x + tile[1], image[1]), min(y + tile[0], image[0]))
        for y in rows
        for x in columns
    ]
    return np.array(corners, np.int32)


def _starts(size: int, tile: int, overlap: int, fixed: bool) -> list[int]:
    """Where the tiles of one axis begin."""
    number = max(math.ceil((size - overlap) / (tile - overlap)), 1)
    starts = [place * (tile - overlap) for place in range(number)]
    return [max(min(start, size - tile), 0) for start in starts] if fixed else starts


def keep_by_side(least: float = 0.7) -> KeepRule:
    """TinyPerson's older rule: the root of the area's share that is in the tile is `least`."""

    def keep(inside: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.sqrt(_share(inside, whole)) >= least

    return keep


def keep_by_area(least: float = 0.3, min_side: float = 2.0, min_area: float = 4.0) -> KeepRule:
    """TinyPerson's newer rule: the area's share is `least`, and what is left larger than a speck.

    Args:
        min_side: of the part in the tile, in pixels, which it exceeds; `min_area` likewise.
    """

    def keep(inside: np.ndarray, whole: np.ndarray) -> np.ndarray:
        large = (inside > min_side).all(-1) & (inside.prod(-1) > min_area)
        return large & (_share(inside, whole) >= least)

    return keep


KEEP_RULES = {"root": keep_by_side, "area": keep_by_area}


def boxes_in_tile(
    boxes_xyxy: Num[np.ndarray, "n 4"],
    corner: Sequence[int] | Int[np.ndarray, " 4"],
    rule: KeepRule,
    ignored: Bool[np.ndarray, " n"] | None = None,
) -> tuple[Float[np.ndarray, "m 4"], Int[np.ndarray, " m"]]:
    """The parts of boxes that a tile has, from its own corner, and the numbers of these boxes.

    Args:
        rule: `keep_by_side` or `keep_by_area`.
        ignored: boxes of which any part stays, so that no tile has them for background.
    """
    boxes = np.asarray(boxes_xyxy, np.float64)
    left, top, right, bottom = map(float, corner)
    cut = boxes.clip([left, top, left, top], [right, bottom, right, bottom])
    inside, whole = cut[:, 2:] - cut[:, :2], boxes[:, 2:] - boxes[:, :2]
    kept = rule(inside, whole)
    if ignored is not None:
        kept |= ignored
    places = np.flatnonzero(kept & (inside > 0).all(-1))
    return cut[places] - np.array([left, top, left, top]), places


def _share(inside: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """The part of each box's area that is inside; 0 of a box without an area."""
    areas = whole.prod(-1)
    return np.divide(inside.prod(-1), areas, out=np.zeros_like(areas), where=areas > 0)


def merge_tiles(
    boxes: Sequence[Num[np.ndarray, "_n 4"]],
    scores: Sequence[Float[np.ndarray, " _n"]],
    corners: Int[np.ndarray, "t 4"],
    threshold: float = 0.5,
) -> tuple[Float[np.ndarray, "m 4"], Int[np.ndarray, " m"]]:
    """Detections of a picture from those of its tiles, by one `greedy_nms` whatever their classes.

    Args:
        boxes: of each tile, from its own corner.

    Returns:
        The boxes that stay, in the picture, by descending score; and their places among the
        detections of all tiles, one tile after another.
    """
    shifted = [
        np.asarray(mine, np.float64).reshape(-1, 4) + np.tile(corner[:2], 2)
        for mine, corner in zip(boxes, corners, strict=True)
    ]
    every = np.concatenate(shifted)
    kept = greedy_nms(every, np.concatenate([*scores]), threshold, extra=1.0)
    return every[kept], kept


def greedy_nms(
    boxes_xyxy: Num[np.ndarray, "n 4"],
    scores: Float[np.ndarray, " n"],
    threshold: float = 0.5,
    *,
    extra: float = 0.0,
) -> Int[np.ndarray, " m"]:
    """The places of boxes that no better one suppresses, by descending score.

    A box goes where its IoU with a better one that stays is `threshold` or more; of equal scores
    the first is the better one.

    Args:
        extra: added to widths and heights: 1 where ends are pixels that belong to the box, as in
            TinyPerson's tool.
    """
    boxes = np.asarray(boxes_xyxy, np.float64)
    areas = (boxes[:, 2:] - boxes[:, :2] + extra).prod(-1)
    order, kept = np.argsort(-np.asarray(scores), kind="stable"), []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        sides = np.minimum(boxes[best, 2:], boxes[order, 2:]) - low + extra
        shared = sides.clip(0).prod(-1)
        union = areas[best] + areas[order] - shared
        # Without a division: boxes of no area suppress nothing.
        order = order[~((shared >= threshold * union) & (shared > 0))]
    return np.array(kept, np.int64)
