"""Kinds of fields: how each follows its image through crops, sizes, flips, pads, into a batch.

A kind is one object with a method for each thing that happens to a record; `vadapt.data.fields`
says by name which field is of which kind, and those of boxes are in `box_kinds`. Values of every
spatial kind may have a leading time axis (clips), known by their number of axes: [t, h, w, c]
images, [t, h, w] masks, [t, n, 4] boxes of n objects that are followed through t frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vadapt.data.label_maps import IGNORE
from vadapt.data.resampling import Box, Filter, Size, resize_linear, resize_nearest
from vadapt.errors import ConfigError, DataError

Batch = dict[str, np.ndarray]
Shapes = dict[str, tuple[tuple[int, ...], Any]]  # name to (shape, dtype)


class Dimensions(NamedTuple):
    """What the shapes of one record on its way into a batch depend on."""

    size: Size
    channels: int = 3
    num_labels: int = 0
    max_boxes: int = 0
    frames: int = 2  # of clips


@dataclasses.dataclass(frozen=True)
class Kind:
    """A plain value, which geometry leaves alone; other kinds say where they differ.

    Attributes:
        of: the field of boxes whose rows the values follow, "" for none: see `keep`.
    """

    of: str = dataclasses.field(default="", kw_only=True)

    def size(self, value: Any) -> Size | None:
        """(height, width) of an array of pixels; None where there are no pixels."""
        return None

    def crop(self, value: Any, box: Box) -> Any:
        """What is inside of a box, which lies in the image."""
        return value

    def resize(self, value: Any, old: Size, new: Size, filter: Filter) -> Any:
        """The value for an image of another size; `filter` resizes images."""
        return value

    def resize_part(self, value: Any, old: Size, new: Size, filter: Filter, box: Box) -> Any:
        """The part of `resize` inside a box, which lies in the image of the new size."""
        return self.crop(self.resize(value, old, new, filter), box)

    def flip(self, value: Any, size: Size) -> Any:
        """The value for the mirror image, left for right."""
        return value

    def pad(self, value: Any, size: Size, color: Sequence[int]) -> Any:
        """The value for an image with margins at the right and the bottom, of a color."""
        return value

    def kept(self, value: Any) -> np.ndarray | None:
        """Which rows (bool [n]) still have an area; None for all that are no boxes."""
        return None

    def keep(self, value: Any, kept: np.ndarray) -> Any:
        """The value once boxes are left with those rows of `of`."""
        return value

    def stack(self, name: str, values: list[np.ndarray], max_boxes: int | None) -> Batch:
        """The fields of a batch that hold these values, a record a row.

        Raises:
            DataError: they differ in shape.
        """
        shapes = _shapes(values)
        if len(shapes) > 1:
            raise DataError(
                f"field {name!r} differs in shape within a batch, {shapes[0]} and {shapes[-1]}; "
                "pad it with a transform, or leave it out with fields=[...]"
            )
        return {name: np.stack(values)}

    def shapes(self, name: str, dimensions: Dimensions) -> Shapes:
        """Shapes and dtypes of what `stack` gives, without the batch's axis.

        Raises:
            ConfigError: they are not known before data are read.
        """
        raise ConfigError(f"the shape of field {name!r} is not known before data are read")


@dataclasses.dataclass(frozen=True)
class Fixed(Kind):
    """A plain value of a shape that is always the same."""

    shape: tuple[int, ...]
    dtype: Any

    def shapes(self, name: str, dimensions: Dimensions) -> Shapes:
        return {name: (self.shape, self.dtype)}


@dataclasses.dataclass(frozen=True)
class Labels(Kind):
    """A number for each label of the whole image: geometry leaves them alone."""

    dtype: Any = np.int8

    def shapes(self, name: str, dimensions: Dimensions) -> Shapes:
        return {name: ((dimensions.num_labels,), self.dtype)}


@dataclasses.dataclass(frozen=True)
class Grid(Kind):
    """An array of pixels, [h, w] or [h, w, c]; one of one's own has `resize_frame`.

    Attributes:
        axes: of one frame.
        clip: whether values have a time axis, for `shapes`; elsewhere their number of axes says it.
    """

    axes: int = 2
    clip: bool = dataclasses.field(default=False, kw_only=True)
    fill = 0  # of margins
    dtype: Any = dataclasses.field(default=np.uint8, kw_only=True)

    def size(self, value: Any) -> Size:
        if value.ndim - self.axes not in (0, 1):
            raise DataError(
                f"a field has {value.ndim} axes, {list(value.shape)}; expected {self.axes}, or one "
                "more of time"
            )
        first = value.ndim - self.axes
        return value.shape[first], value.shape[first + 1]

    def _cut(self, rows: slice, columns: slice) -> tuple[Any, ...]:
        return (..., rows, columns, *[slice(None)] * (self.axes - 2))

    def crop(self, value: Any, box: Box) -> Any:
        top, left, height, width = box
        return value[self._cut(slice(top, top + height), slice(left, left + width))]

    def resize(self, value: Any, old: Size, new: Size, filter: Filter) -> Any:
        return self._by_frame(value, lambda frame: self.resize_frame(frame, new, filter))

    def _by_frame(self, value: Any, change: Callable[[Any], Any]) -> Any:
        if value.ndim == self.axes:
            return change(value)
        return np.stack([change(frame) for frame in value])

    def resize_frame(self, frame: np.ndarray, size: Size, filter: Filter) -> np.ndarray:
        """One frame at another size: by nearest, since values may be numbers of classes."""
        return resize_nearest(frame, size)

    def flip(self, value: np.ndarray, size: Size) -> np.ndarray:
        # Copied here, by a reading thread, and not by the one that stacks the batch.
        return value.take(np.arange(size[1])[::-1], axis=1 - self.axes)

    def pad(self, value: np.ndarray, size: Size, color: Sequence[int]) -> np.ndarray:
        height, width = self.size(value)
        first = value.ndim - self.axes
        padded = np.empty((*value.shape[:first], *size, *value.shape[first + 2 :]), value.dtype)
        padded[...] = self.margin(value, color)
        padded[self._cut(slice(height), slice(width))] = value
        return padded

    def margin(self, value: np.ndarray, color: Sequence[int]) -> Any:
        """The number, or one for each channel, that margins have."""
        return self.fill

    def shapes(self, name: str, dimensions: Dimensions) -> Shapes:
        time = (dimensions.frames,) * self.clip
        return {name: ((*time, *dimensions.size, *self.channels(dimensions)), self.dtype)}

    def channels(self, dimensions: Dimensions) -> tuple[int, ...]:
        """The shape of one pixel."""
        return ()


@dataclasses.dataclass(frozen=True)
class Image(Grid):
    """Images, uint8 [h, w, c], or with `axes` 2 gray ones [h, w]; margins have the color given.

    Attributes:
        colors: channels, where it is always the same number; 0 takes `Dimensions.channels`.
    """

    axes: int = 3
    colors: int = 0

    def resize_frame(self, frame: Any, size: Size, filter: Filter) -> Any:
        return filter(frame, size) if self.axes == 3 else filter(frame[..., None], size)[..., 0]

    def resize_part(
        self, value: np.ndarray, old: Size, new: Size, filter: Filter, box: Box
    ) -> np.ndarray:
        def part(frame: np.ndarray) -> np.ndarray:
            if self.axes == 3:
                return filter(frame, new, box=box)
            return filter(frame[..., None], new, box=box)[..., 0]

        return self._by_frame(value, part)

    def margin(self, value: np.ndarray, color: Sequence[int]) -> Any:
        if self.axes == 2:
            return round(sum(color) / len(color))
        return np.array(color[: value.shape[-1]], np.uint8)

    def channels(self, dimensions: Dimensions) -> tuple[int, ...]:
        return (self.colors or dimensions.channels,) if self.axes == 3 else ()

    def stack(self, name: str, values: list[np.ndarray], max_boxes: int | None) -> Batch:
        shapes = _shapes(values)
        if values[0].dtype != np.uint8 or any(len(s) - self.axes not in (0, 1) for s in shapes):
            form = "[h, w, c]" if self.axes == 3 else "[h, w]"
            raise DataError(
                f"field {name!r} must be uint8 {form}, not {values[0].dtype} {list(shapes[0])}; "
                "the source has to make them so"
            )
        sizes = sorted({self.size(value) for value in values})
        if len(sizes) > 1:
            raise DataError(
                f"field {name!r} differs in size (height, width) within a batch, {sizes[0]} and "
                f"{sizes[-1]}; add RandomResizedCrop(size), Resize(size) or ResizeCenterCrop(size) "
                "to the transforms"
            )
        if self.axes == 3 and len({shape[-1] for shape in shapes}) > 1:
            raise DataError(
                f"field {name!r} has {shapes[0][-1]} and {shapes[-1][-1]} channels within a batch; "
                "add Channels(3) or Channels(1) to the transforms"
            )
        return super().stack(name, values, max_boxes)


@dataclasses.dataclass(frozen=True)
class Mask(Grid):
    """Classes of pixels, [h, w]; margins do not count."""

    fill = IGNORE

    def resize_part(
        self, value: np.ndarray, old: Size, new: Size, filter: Filter, box: Box
    ) -> np.ndarray:
        return self._by_frame(value, lambda frame: resize_nearest(frame, new, box=box))


@dataclasses.dataclass(frozen=True)
class Flow(Grid):
    """Motion (x, y) of every pixel in pixels, [h, w, 2]: grows with the image, mirrors with it."""

    axes: int = 3
    dtype: Any = dataclasses.field(default=np.float32, kw_only=True)

    def resize(self, value: np.ndarray, old: Size, new: Size, filter: Filter) -> np.ndarray:
        scale = np.array([new[1] / old[1], new[0] / old[0]], value.dtype)
        return super().resize(value, old, new, filter) * scale

    def resize_frame(self, frame: np.ndarray, size: Size, filter: Filter) -> np.ndarray:
        return resize_linear(frame, size)

    def flip(self, value: np.ndarray, size: Size) -> np.ndarray:
        return super().flip(value, size) * np.array([-1, 1], value.dtype)

    def channels(self, dimensions: Dimensions) -> tuple[int, ...]:
        return (2,)


def _shapes(values: list[np.ndarray]) -> list[tuple[int, ...]]:
    return sorted({value.shape for value in values})
