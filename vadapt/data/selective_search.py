"""Regions of an image that may hold an object: selective search on the grey picture.

A fine segmentation is merged step by step, the two most alike neighbours first; every region that
ever existed is a candidate, unless it is small, thin or long. Needs scikit-image, the extra `roi`.
"""

from __future__ import annotations

import dataclasses
import heapq
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, Integer, UInt8

from vadapt.data.region_features import BRIGHTNESS_BINS, first_regions
from vadapt.errors import ConfigError, DataError

_PAIRS_AT_ONCE = 2**18  # bounds the memory of the first table


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """Options: how fine the segmentation is, and which regions count; by default PAD's.

    Attributes:
        scale: of Felzenszwalb's segmentation: the larger, the larger the first regions.
        sigma: of the Gaussian blur before it, in pixels.
        min_size: pixels of the smallest first region.
        min_area: pixels of the smallest candidate.
        min_side: least width and height of a candidate, in pixels between its first and last.
        max_aspect: the longer side over the shorter one, at most.
    """

    scale: float | int = 600
    sigma: float | int = 0.9
    min_size: int = 30
    min_area: int = 600
    min_side: int = 40
    max_aspect: float | int = 3

    def __post_init__(self) -> None:
        if min(self.scale, self.min_size, self.min_side) <= 0 or min(self.sigma, self.min_area) < 0:
            raise ConfigError(
                f"{self}: scale, min_size and min_side must be above 0, sigma and min_area at "
                "least 0"
            )
        if self.max_aspect < 1:
            raise ConfigError(f"max_aspect is {self.max_aspect}; it must be at least 1")

    def scaled(self, factor: float) -> SearchSettings:
        """The same for pictures whose sides are `factor` as long."""
        area = factor * factor
        return dataclasses.replace(
            self,
            scale=max(self.scale * area, 1.0),
            min_size=max(round(self.min_size * area), 4),
            min_area=round(self.min_area * area),
            min_side=max(round(self.min_side * factor), 1),
        )


PUBLISHED = SearchSettings()


class Regions(NamedTuple):
    """Regions in the order of their creation: the first ones in raster order, then the merged."""

    corners: Int32[np.ndarray, "n 4"]  # min x, min y, max x, max y; pixels inside, all four
    sizes: Int64[np.ndarray, " n"]  # pixels

    @property
    def boxes_xywh(self) -> Int32[np.ndarray, "n 4"]:
        """(x, y, w, h), where w and h lack one pixel of the inclusive extent, as published."""
        return np.concatenate([self.corners[:, :2], self.corners[:, 2:] - self.corners[:, :2]], 1)


def find_candidates(
    grey: UInt8[np.ndarray, "h w"], settings: SearchSettings = PUBLISHED
) -> Int32[np.ndarray, "n 4"]:
    """Candidate boxes (x, y, w, h) of objects, sorted, each once; see `Regions.boxes_xywh`.

    Raises:
        DataError: scikit-image is not installed.

    >>> picture = np.full((96, 128), 40, np.uint8)
    >>> picture[20:70, 30:90] = 200
    >>> [30, 20, 59, 49] in find_candidates(picture).tolist()
    True
    """
    return keep_candidates(group(segment(grey, settings), grey), settings)


def keep_candidates(regions: Regions, settings: SearchSettings) -> Int32[np.ndarray, "n 4"]:
    """The boxes of regions that are large and compact enough, sorted, each once."""
    boxes = regions.boxes_xywh
    width, height = boxes[:, 2], boxes[:, 3]
    large = (regions.sizes >= settings.min_area) & (np.minimum(width, height) >= settings.min_side)
    # Boxes of no width or height are gone by now: min_side is above 0.
    boxes, width, height = boxes[large], width[large], height[large]
    compact = np.maximum(width / height, height / width) <= settings.max_aspect
    return np.unique(boxes[compact], axis=0)


def segment(
    grey: UInt8[np.ndarray, "h w"], settings: SearchSettings = PUBLISHED
) -> Int32[np.ndarray, "h w"]:
    """Felzenszwalb's graph segmentation of the grey picture, shown as three equal channels."""
    try:
        from skimage.segmentation import felzenszwalb
    except ImportError as error:
        raise DataError("selective search needs scikit-image: pip install 'vadapt[roi]'") from error
    labels = felzenszwalb(
        np.repeat((grey / 255.0)[..., None], 3, axis=-1),
        scale=settings.scale,
        sigma=settings.sigma,
        min_size=settings.min_size,
    )
    return labels.astype(np.int32)


def group(labels: Integer[np.ndarray, "h w"], grey: UInt8[np.ndarray, "h w"]) -> Regions:
    """Merges the first regions pair by pair, the most similar first, until no neighbours are left.

    Similar are regions of like brightness and texture that are small and fill their common box.
    Among equals the pair that was found last goes first.

    Args:
        labels: of the first regions; any integers.

    Source: Uijlings et al., "Selective Search for Object Recognition", with the neighbours and
    histograms of PAD's candidates (arXiv:2312.08192): neighbours are boxes of which the later one
    has a corner inside the earlier one; colour histograms of a grey picture count its brightness
    alone; texture counts the binary patterns 0 and 1 of 256.
    """
    return _Grouping(labels, grey).run()


class _Grouping:
    """The regions so far, and the table of neighbours.

    Every pair of the table belongs to one of its regions, which keeps its own pairs sorted; the
    heap holds one entry a region, its best. Pairs with a region that is gone are skipped when
    they come up. The number of a pair says when it was put into the table.
    """

    def __init__(self, labels: np.ndarray, grey: np.ndarray):
        corners, sizes, histograms = first_regions(labels, grey)
        count = len(sizes)
        room = 2 * count - 1  # each merger takes two regions and makes one
        self.count, self.num_pixels = count, labels.size
        self.corners = np.zeros((4, room), np.int64)
        self.sizes = np.zeros(room, np.int64)
        self.histograms = np.zeros((len(histograms), room))
        self.corners[:, :count], self.sizes[:count] = corners, sizes
        self.histograms[:, :count] = histograms
        self.alive = [True] * count + [False] * (room - count)
        self.neighbours: list[dict[int, int]] = [{} for _ in range(room)]
        self.pairs: list[tuple[list[float], list[int], list[int]]] = [([], [], [])] * room
        self.heap: list[tuple[float, int, int, int]] = []
        self.num_pairs = 0

    def run(self) -> Regions:
        rows = max(_PAIRS_AT_ONCE // self.count, 1)
        for start in range(0, self.count, rows):
            self.put_first(start, min(start + rows, self.count))
        while self.heap:
            _, _, owner, place = heapq.heappop(self.heap)
            if not self.alive[owner]:
                continue
            other = self.pairs[owner][2][place]
            if self.alive[other]:
                self.merge(owner, other)
            else:
                self.offer(owner, place + 1)
        return Regions(
            np.ascontiguousarray(self.corners[:, : self.count].T).astype(np.int32),
            self.sizes[: self.count],
        )

    def put_first(self, start: int, stop: int) -> None:
        """Puts the pairs of some first regions with those after them into the table."""
        corners = self.corners[:, : self.count]
        inside = _corner_inside(corners[:, start:stop], corners)
        regions, others = np.nonzero(np.triu(inside, start + 1))
        regions += start
        similarity = self.similarity(regions, others)
        ends = np.searchsorted(regions, np.arange(start, stop + 1))
        for region in range(start, stop):
            part = slice(*ends[region - start : region - start + 2])
            self.put(region, others[part], similarity[part])

    def put(self, region: int, others: np.ndarray, similarity: np.ndarray) -> None:
        """Puts the pairs of a region with others into the table, in this order."""
        if not len(others):
            return
        mine = self.neighbours[region]
        for number, other in enumerate(others.tolist(), self.num_pairs):
            mine[other] = self.neighbours[other][region] = number
        # Most similar first, the newest first among equals: a stable sort of the reversed order.
        order = np.argsort(-similarity[::-1], kind="stable")
        order = len(others) - 1 - order
        numbers = order + self.num_pairs
        self.pairs[region] = (
            similarity[order].tolist(),
            numbers.tolist(),
            others[order].tolist(),
        )
        self.num_pairs += len(others)
        self.offer(region, 0)

    def offer(self, owner: int, place: int) -> None:
        """Puts the best pair of a region that still exists on the heap, from a place onwards."""
        similarity, numbers, others = self.pairs[owner]
        while place < len(others):
            if self.alive[others[place]]:
                entry = (-similarity[place], -numbers[place], owner, place)
                heapq.heappush(self.heap, entry)
                return
            place += 1

    def merge(self, first: int, second: int) -> None:
        """Makes one region of two; it inherits the neighbours of both in their order."""
        new = self.count
        self.count += 1
        parts = [first, second]
        sizes = self.sizes[parts]
        self.corners[:2, new] = self.corners[:2, parts].min(1)
        self.corners[2:, new] = self.corners[2:, parts].max(1)
        self.sizes[new] = sizes.sum()
        weighted = self.histograms[:, parts] * sizes
        self.histograms[:, new] = (weighted[:, 0] + weighted[:, 1]) / self.sizes[new]
        numbers: dict[int, int] = {}
        for part in parts:
            for other, number in self.neighbours[part].items():
                if self.alive[other] and other not in parts:
                    del self.neighbours[other][part]
                    numbers[other] = min(number, numbers.get(other, number))
            self.neighbours[part] = {}
            self.pairs[part] = ([], [], [])
        self.alive[first] = self.alive[second] = False
        self.alive[new] = True
        others = np.array(sorted(numbers, key=numbers.__getitem__), np.int64)
        self.put(new, others, self.similarity(np.array([new]), others))

    def similarity(
        self, regions: Int64[np.ndarray, " m"], others: Int64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, " n"]:
        """Likeness of colour, texture, size and filling, added in this order; 0 to 8.

        Of each region with the other in its place, or of one region with all others.
        """
        common = np.minimum(self.histograms.take(others, 1), self.histograms.take(regions, 1))
        # Hue and saturation of grey fill one bin each: 1 + 1. Added one by one, as ties between
        # sums hang on the last bit; NumPy's own sum adds in an order that depends on the shape.
        common[0] += 2.0
        colour = np.add.accumulate(common[:BRIGHTNESS_BINS])[-1]
        none, one = common[BRIGHTNESS_BINS:]
        texture = none + one + none + one + none + one  # of three equal channels
        sizes = self.sizes[others] + self.sizes[regions]
        ours, theirs = self.corners.take(regions, 1), self.corners.take(others, 1)
        low, high = np.minimum(ours[:2], theirs[:2]), np.maximum(ours[2:], theirs[2:])
        box = (high[0] - low[0]) * (high[1] - low[1])
        small = 1.0 - sizes / self.num_pixels
        filling = 1.0 - (box - sizes) / self.num_pixels
        return colour + texture + small + filling


def _corner_inside(
    boxes: Int64[np.ndarray, "4 m"], others: Int64[np.ndarray, "4 n"]
) -> Bool[np.ndarray, "m n"]:
    """Whether a corner of each other box lies strictly inside each box."""

    def between(low: int, high: int) -> Bool[np.ndarray, "m n"]:
        starts, ends = boxes[low, :, None], boxes[high, :, None]
        return ((others[low] > starts) & (others[low] < ends)) | (
            (others[high] > starts) & (others[high] < ends)
        )

    return between(0, 2) & between(1, 3)
