"""Kinds of fields of boxes, of what goes with each box, and of the pixels of each box's object."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from vadapt.data.kinds import Batch, Box, Dimensions, Grid, Kind, Shapes
from vadapt.data.resampling import Filter, Size
from vadapt.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class Instances(Grid):
    """1 + the row of the box that a pixel belongs to, [h, w]; 0 where there is none."""

    of: str = dataclasses.field(default="boxes_xyxy", kw_only=True)

    def keep(self, value: np.ndarray, kept: np.ndarray) -> np.ndarray:
        numbers = np.arange(max(len(kept), int(value.max(initial=0))) + 1)  # 255 may be ignored
        numbers[1 : len(kept) + 1] = np.where(kept, np.cumsum(kept), 0)
        return numbers.astype(value.dtype).take(value)


@dataclasses.dataclass(frozen=True)
class Rows(Kind):
    """A row for each box, [n, ...]; a batch has them padded to one number of rows.

    Attributes:
        rest: the shape of one row, and `dtype`, for `shapes`.
        fill: of rows that are none.
    """

    of: str = dataclasses.field(default="boxes_xyxy", kw_only=True)
    rest: tuple[int, ...] = ()
    dtype: Any = np.int32
    fill: float = 0
    axis = 0  # of the rows

    def keep(self, value: np.ndarray, kept: np.ndarray) -> np.ndarray:
        return value.compress(kept, axis=self.axis)

    def stack(self, name: str, values: list[np.ndarray], max_boxes: int | None) -> Batch:
        counts = [value.shape[self.axis] for value in values]
        if max_boxes is None and len(set(counts)) > 1:
            raise DataError(
                f"field {name!r} has {min(counts)} and {max(counts)} rows within a batch; give "
                "max_boxes (config.data.max_boxes), to which they are padded"
            )
        if max_boxes is not None:
            if max(counts) > max_boxes:
                raise DataError(
                    f"an image has {max(counts)} rows of {name!r} and config.data.max_boxes is "
                    f"{max_boxes}; raise it"
                )
            values = [self._padded(value, max_boxes) for value in values]
        return super().stack(name, values, None)

    def _padded(self, value: np.ndarray, rows: int) -> np.ndarray:
        lacking = [(0, 0)] * value.ndim
        lacking[self.axis] = (0, rows - value.shape[self.axis])
        return np.pad(value, lacking, constant_values=self.fill)

    def shapes(self, name: str, dimensions: Dimensions) -> Shapes:
        return {name: ((_max_boxes(dimensions, name), *self.rest), self.dtype)}


@dataclasses.dataclass(frozen=True)
class Boxes(Rows):
    """Boxes (left, top, right, bottom) in pixels, ends exclusive, [n, 4].

    A crop cuts them at its edges, and drops those left without an area, with what follows them (of
    a clip: in no frame an area). In a batch of `max_boxes` rows, "NAME_valid" says which are real.
    """

    of: str = dataclasses.field(default="", kw_only=True)
    rest: tuple[int, ...] = (4,)
    dtype: Any = np.float32
    clip: bool = dataclasses.field(default=False, kw_only=True)
    axis = -2

    def corners(self, value: np.ndarray) -> np.ndarray:
        """Left, top, right and bottom, float64."""
        return value.astype(np.float64)

    def values(self, corners: np.ndarray, dtype: Any) -> np.ndarray:
        """The inverse of `corners`, in the dtype of the field; whole numbers are the nearest."""
        return (np.rint(corners) if np.issubdtype(dtype, np.integer) else corners).astype(dtype)

    def crop(self, value: np.ndarray, box: Box) -> np.ndarray:
        top, left, height, width = box
        moved = self.corners(value) - np.array([left, top, left, top])
        return self.values(moved.clip(0, np.array([width, height] * 2)), value.dtype)

    def resize(self, value: np.ndarray, old: Size, new: Size, filter: Filter) -> np.ndarray:
        scale = np.array([new[1] / old[1], new[0] / old[0]] * 2)
        return self.values(self.corners(value) * scale, value.dtype)

    def flip(self, value: np.ndarray, size: Size) -> np.ndarray:
        left, top, right, bottom = np.moveaxis(self.corners(value), -1, 0)
        mirrored = np.stack([size[1] - right, top, size[1] - left, bottom], -1)
        return self.values(mirrored, value.dtype)

    def kept(self, value: np.ndarray) -> np.ndarray:
        left, top, right, bottom = np.moveaxis(self.corners(value), -1, 0)
        there = (right > left) & (bottom > top)
        return there.any(axis=tuple(range(there.ndim - 1)))  # of a clip: in any frame

    def stack(self, name: str, values: list[np.ndarray], max_boxes: int | None) -> Batch:
        batch = super().stack(name, values, max_boxes)
        if max_boxes is None:
            return batch
        counts = np.array([value.shape[-2] for value in values])
        return batch | {f"{name}_valid": np.arange(max_boxes) < counts[:, None]}

    def shapes(self, name: str, dimensions: Dimensions) -> Shapes:
        rows = _max_boxes(dimensions, name)
        time = (dimensions.frames,) * self.clip
        return {
            name: ((*time, rows, *self.rest), self.dtype),
            f"{name}_valid": ((rows,), np.bool_),
        }


@dataclasses.dataclass(frozen=True)
class Rois(Boxes):
    """Boxes as (x, y, w, h) in whole pixels, [n, 4]: candidates of objects."""

    dtype: Any = np.int32

    def corners(self, value: np.ndarray) -> np.ndarray:
        start, extent = np.split(value.astype(np.float64), 2, axis=-1)
        return np.concatenate([start, start + extent], -1)

    def values(self, corners: np.ndarray, dtype: Any) -> np.ndarray:
        start, end = np.split(super().values(corners, dtype), 2, axis=-1)
        return np.concatenate([start, end - start], -1)


def _max_boxes(dimensions: Dimensions, name: str) -> int:
    if not dimensions.max_boxes:
        raise ConfigError(
            f"images differ in their number of {name!r}: say to how many they are padded, "
            "--config.data.max_boxes=..."
        )
    return dimensions.max_boxes
