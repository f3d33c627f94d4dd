"""PAD's object-sensitive crop: around a region that may hold an object, else anywhere."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer

from vadapt.data.fields import Record, frame_size
from vadapt.data.kinds import Box
from vadapt.data.transforms import RandomResizedCrop, crop_and_resize, random_resized_crop_box
from vadapt.errors import ConfigError

SHIFT = (-0.4, 0.4)  # of the centre, in candidate sizes
ZOOM = (0.7, 1.5)  # of the sides


@dataclasses.dataclass(frozen=True)
class RoiRules:
    """Which crops around a candidate are taken; the defaults are PAD's, for images of 500 pixels.

    Attributes:
        probability: of a crop of any size; the other images take no crop that is small (below).
        min_side: of a crop, in pixels.
        min_candidate_side: of a candidate, in pixels.
        large_share: of the image's area that a crop covers where small ones are not taken.
        randomise: without it the crop is the candidate itself, whatever the other rules say.
    """

    probability: float | int = 0.85
    min_side: int = 60
    min_candidate_side: int = 40
    large_share: float | int = 0.15
    randomise: bool = True

    def __post_init__(self) -> None:
        for name in ("probability", "large_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be within 0..1")
        if min(self.min_side, self.min_candidate_side) < 1:
            raise ConfigError(
                f"min_side is {self.min_side} and min_candidate_side {self.min_candidate_side}; "
                "both are pixels, at least 1"
            )


class RoiDraws(NamedTuple):
    """The random numbers of one crop: one, then a row an attempt."""

    large: float  # uniform in 0..1; above `RoiRules.probability` small crops are not taken
    ids: Integer[np.ndarray, " t"]  # of candidates
    shifts: Float[np.ndarray, "t 2"]  # of the centre (x, y), in candidate sizes
    zooms: Float[np.ndarray, "t 2"]  # of the width and the height


class RoiCrop(NamedTuple):
    """The result of `roi_crop_box`: the box, or None, and the attempts that it took."""

    box: Box | None
    attempts: int


def draw_roi(rng: np.random.Generator, num_candidates: int, attempts: int = 20) -> RoiDraws:
    """Draws what `roi_crop_box` needs; a row holds index, shifts of x and y, zooms of x and y."""
    large = float(rng.random())
    rows = rng.random((attempts, 5))
    return RoiDraws(
        large,
        (rows[:, 0] * num_candidates).astype(np.int64),
        SHIFT[0] + (SHIFT[1] - SHIFT[0]) * rows[:, 1:3],
        ZOOM[0] + (ZOOM[1] - ZOOM[0]) * rows[:, 3:],
    )


def roi_crop_box(
    height: int,
    width: int,
    rois: Integer[np.ndarray, "n 4"],
    draws: RoiDraws,
    rules: RoiRules = RoiRules(),
) -> RoiCrop:
    """The first crop around a candidate that the rules allow; None if no attempt gives one.

    A crop ends before the image's last column and row, even one around the whole image: that is
    the published rule. So an image with a side of `min_side` pixels or less has no such crop.

    Args:
        height: of the image, in pixels; `width` likewise.
        rois: candidates (x, y, w, h) in pixels; those that stick out of the image or are too small
            cost an attempt.
        draws: an attempt a row, see `draw_roi`. The maths runs in float64.

    Source: PAD, arXiv:2312.08192, section 3.4; details from the released code. Python's rounding,
        halves to even.
    """
    if not len(rois):
        return RoiCrop(None, 0)
    large = draws.large > rules.probability
    rows = (draws.ids.tolist(), draws.shifts.tolist(), draws.zooms.tolist())
    attempt = 0
    for attempt, (index, shift, zoom) in enumerate(zip(*rows, strict=True), 1):
        x, y, w, h = rois[index].tolist()
        if x < 0 or y < 0 or x + w > width or y + h > height:
            continue
        if min(w, h) < rules.min_candidate_side:
            continue
        if not rules.randomise:
            return RoiCrop((y, x, h, w), attempt)
        left, right = _side(x, w, width, shift[0], zoom[0], rules.min_side)
        top, bottom = _side(y, h, height, shift[1], zoom[1], rules.min_side)
        if min(right - left, bottom - top) < rules.min_side:
            continue
        if large and (right - left) * (bottom - top) / (width * height) < rules.large_share:
            continue
        return RoiCrop((top, left, bottom - top, right - left), attempt)
    return RoiCrop(None, attempt)


def _side(
    start: int, length: int, end: int, shift: float, zoom: float, least: int
) -> tuple[int, int]:
    """Start and end along one axis, cut to the image without its last pixel."""
    centre = round(start + length / 2) + round(length * shift)
    length_drawn = max(length * zoom, least)
    low, high = round(centre - length_drawn / 2), round(centre + length_drawn / 2)
    return max(0, low), min(end - 1, high)


@dataclasses.dataclass(frozen=True)
class RandomRoiCrop:
    """Cuts a random box around one of the record's candidates and resizes it.

    The record's "rois", int32 [n, 4] of (x, y, w, h) in pixels, say where objects may be; they
    are gone from the result. Without any, or when 20 attempts fail, the crop is that of
    `RandomResizedCrop` with the same area and aspect.

    >>> record = {"image": np.zeros((200, 300, 3), np.uint8)}
    >>> record["rois"] = np.array([[50, 60, 120, 80]], np.int32)
    >>> cropped = RandomRoiCrop((32, 32))(record, np.random.default_rng(0))
    >>> sorted(cropped), cropped["image"].shape
    (['image'], (32, 32, 3))
    """

    size: tuple[int, int]
    rules: RoiRules = RoiRules()
    attempts: int = 20
    area: tuple[float | int, float | int] = (0.2, 1.0)
    aspect: tuple[float | int, float | int] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        # The checks of the fallback are those of its own transform.
        RandomResizedCrop(self.size, self.area, self.aspect)
        if self.attempts < 0:
            raise ConfigError(f"attempts is {self.attempts}; it must not be negative")

    def box(
        self, height: int, width: int, rois: Integer[np.ndarray, "n 4"], rng: np.random.Generator
    ) -> Box:
        """Draws a crop (top, left, height, width)."""
        if len(rois):
            draws = draw_roi(rng, len(rois), self.attempts)
            found = roi_crop_box(height, width, rois, draws, self.rules).box
            if found is not None:
                return found
        return random_resized_crop_box(height, width, rng, self.area, self.aspect)

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        record = dict(record)
        rois = record.pop("rois", np.zeros((0, 4), np.int32))
        height, width = frame_size(record)
        return crop_and_resize(record, self.box(height, width, rois, rng), self.size)
