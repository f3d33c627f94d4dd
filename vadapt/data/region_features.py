"""Features of a region in selective search: box, size, brightness and texture."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, Integer, UInt8

BRIGHTNESS_BINS = 25
# Bin of each grey value among 25 over 0..255, the last one closed, as numpy.histogram counts.
_BIN_OF_GREY = np.minimum(
    np.searchsorted(np.linspace(0, 255, BRIGHTNESS_BINS + 1), np.arange(256), side="right") - 1,
    BRIGHTNESS_BINS - 1,
)
_DIAGONAL = 0.70711


def first_regions(
    labels: Integer[np.ndarray, "h w"], grey: UInt8[np.ndarray, "h w"]
) -> tuple[Int64[np.ndarray, "4 n"], Int64[np.ndarray, " n"], Float64[np.ndarray, "bins n"]]:
    """Corners, sizes and histograms of labelled regions, in raster order of first appearance."""
    ids = labels - labels.min()
    if ids.max() >= ids.size:
        ids = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    first = _ends(ids.ravel())[0]
    seen = np.flatnonzero(first >= 0)
    count = len(seen)
    rank = np.zeros(len(first), np.int64)
    rank[seen[np.argsort(first[seen])]] = np.arange(count)
    ids = rank[ids]
    # Pixels come row by row, so the first of a region lies in its topmost row; the transposed
    # picture gives the columns. Four times as fast as minima and maxima over all pixels.
    (top, bottom), (left, right) = _ends(ids.ravel()), _ends(ids.T.ravel())
    height, width = labels.shape
    corners = np.stack([left // height, top // width, right // height, bottom // width])
    ids = ids.ravel()
    sizes = np.bincount(ids, minlength=count)
    bins = _BIN_OF_GREY[grey].ravel()
    brightness = np.bincount(ids * BRIGHTNESS_BINS + bins, minlength=count * BRIGHTNESS_BINS)
    texture = [np.bincount(ids[places], minlength=count) for places in _peaks(grey)]
    histograms = np.concatenate([brightness.reshape(count, -1).T, texture]) / sizes
    return corners, sizes, histograms


def _peaks(
    grey: UInt8[np.ndarray, "h w"],
) -> tuple[Int64[np.ndarray, " a"], Int64[np.ndarray, " b"]]:
    """Flat places of the local binary patterns 0 and 1 (8 neighbours at radius 1, zeros around).

    All neighbours are darker than the pixel; in pattern 1, all but the one on the right. Of the
    256 patterns no other counts, so most pixels are out after three comparisons.

    Source: `skimage.feature.local_binary_pattern`, the same to the last bit: where the picture is
        flat, the sign of a difference hangs on how the interpolation is rounded.
    """
    width = grey.shape[1]
    padded = np.pad(grey, 1)
    left, up, down = padded[1:-1, :-2], padded[:-2, 1:-1], padded[2:, 1:-1]
    places = np.flatnonzero((left < grey) & (up < grey) & (down < grey))
    flat, centres = padded.astype(np.float64).ravel(), grey.astype(np.float64).ravel()
    for upwards, leftwards in ((True, False), (True, True), (False, True), (False, False)):
        y, x = np.divmod(places, width)
        low_y, low_x = y - upwards, x - leftwards
        # The published offset has five digits, and what is left of it after the addition is used.
        part_y = (y + (-_DIAGONAL if upwards else _DIAGONAL)) - low_y
        part_x = (x + (-_DIAGONAL if leftwards else _DIAGONAL)) - low_x
        corner = (low_y + 1) * (width + 2) + low_x + 1
        above = (1 - part_x) * flat[corner] + part_x * flat[corner + 1]
        corner += width + 2
        below = (1 - part_x) * flat[corner] + part_x * flat[corner + 1]
        value = (1 - part_y) * above + part_y * below
        places = places[value - centres[places] < 0]
    bright = padded[1:-1, 2:].ravel()[places] >= grey.ravel()[places]
    return places[~bright], places[bright]


def _ends(ids: Integer[np.ndarray, " p"]) -> Int64[np.ndarray, "2 n"]:
    """The first and the last place of each id; -1 for ids that do not occur."""
    ends = np.full((2, int(ids.max()) + 1), -1, np.int64)
    places = np.arange(len(ids))
    ends[0, ids[::-1]] = places[::-1]  # of several writes to one place the last stays
    ends[1, ids] = places
    return ends
