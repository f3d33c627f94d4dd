"""Fields of records by name, and the geometry that moves all of a record's fields at once.

`FIELDS` says of which kind a field is; what it does not name is a plain value, which geometry
leaves alone. All pixels of a record lie on one grid: its images, masks and flow have one size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vadapt.data.box_kinds import Boxes, Instances, Rois, Rows
from vadapt.data.kinds import (
    Batch,
    Box,
    Dimensions,
    Fixed,
    Flow,
    Grid,
    Image,
    Kind,
    Labels,
    Mask,
    Shapes,
)
from vadapt.data.resampling import Filter, Size, resize_pillow
from vadapt.errors import ConfigError, DataError

Record = dict[str, Any]

PLAIN = Kind()
FIELDS: dict[str, Kind] = {
    "image": Image(),
    "next_image": Image(),
    "clip": Image(clip=True),
    "visible": Image(colors=3),
    "next_visible": Image(colors=3),
    "thermal": Image(2),
    "next_thermal": Image(2),
    "mask": Mask(),
    "next_mask": Mask(),
    "clip_mask": Mask(clip=True),
    "instances": Instances(),
    "boxes_xyxy": Boxes(),
    "box_classes": Rows(),
    "box_categories": Rows(),
    "box_crowds": Rows(dtype=np.bool_),
    "box_ignored": Rows(dtype=np.bool_),
    "rois": Rois(),
    "labels": Labels(),
    "areas": Labels(np.float32),
    "flow": Flow(),
    "size": Fixed((2,), np.int32),
    "scale_factor": Fixed((2,), np.float32),
    "boxes_left_out": Fixed((), np.int32),
}


def register(name: str, kind: Kind) -> None:
    """Say of which kind a field of one's own is; all transforms then carry it.

    Raises:
        ConfigError: the name is taken by another kind.
    """
    if FIELDS.setdefault(name, kind) != kind:
        raise ConfigError(f"field {name!r} is taken: {FIELDS[name]}; choose another name")


def kind_of(name: str) -> Kind:
    """The kind of a field; plain values have no entry."""
    return FIELDS.get(name, PLAIN)


def frame_size(record: Record) -> Size:
    """(height, width) of a record's pixels.

    Raises:
        DataError: it has no image and no other field of pixels, or they differ in size.
    """
    sizes = {
        name: size
        for name, value in record.items()
        if (size := kind_of(name).size(value)) is not None
    }
    if not sizes:
        raise DataError(f"a record of {sorted(record)} has no image: no size to go by")
    size = sizes.get("image", next(iter(sizes.values())))
    for name, other in sizes.items():
        if other != size:
            raise DataError(
                f"fields of one record differ in size: {name!r} has {other[0]}x{other[1]} pixels, "
                f"others {size[0]}x{size[1]}"
            )
    return size


def crop(record: Record, box: Box) -> Record:
    """What lies inside of a box (top, left, height, width), which is cut at the image's edges.

    Boxes left without an area are dropped, with what goes with them.
    """
    inside = _inside(box, frame_size(record))
    return _without_empty(_moved(record, lambda kind, value: kind.crop(value, inside)))


def resize(
    record: Record, size: Size, filter: Filter = resize_pillow, *, images_only: bool = False
) -> Record:
    """The record at another (height, width).

    Args:
        filter: of images: `resize_pillow` or `resize_opencv`. Classes are resized by nearest, flow
            linearly.
        images_only: leave the labels of pixels and the boxes as they are.
    """
    old = frame_size(record)
    resized = _moved(
        record,
        lambda kind, value: (
            value
            if images_only and not isinstance(kind, Image)
            else kind.resize(value, old, size, filter)
        ),
    )
    return resized if images_only else _without_empty(resized)


def resize_part(record: Record, size: Size, box: Box, filter: Filter) -> Record:
    """`crop(resize(record, size, filter), box)`, with no more resized than is kept."""
    old, inside = frame_size(record), _inside(box, size)
    return _without_empty(
        _moved(record, lambda kind, value: kind.resize_part(value, old, size, filter, inside))
    )


def flip(record: Record) -> Record:
    """The mirror image, left for right, of the whole record."""
    size = frame_size(record)
    return _moved(record, lambda kind, value: kind.flip(value, size))


def pad(record: Record, size: Size, color: Sequence[int]) -> Record:
    """The record with margins at the right and the bottom, up to (height, width).

    Images get the color, classes 255, flow and instances 0.
    """
    if frame_size(record) == size:
        return record
    return _moved(record, lambda kind, value: kind.pad(value, size, color))


def keep_boxes(record: Record, kept: np.ndarray, name: str = "boxes_xyxy") -> Record:
    """The record with some of its boxes (bool [n]), and of what goes with them."""
    return {
        other: kind_of(other).keep(value, kept)
        if other == name or kind_of(other).of == name
        else value
        for other, value in record.items()
    }


def refuse_geometry(record: Record, who: str) -> None:
    """Refuse a record with fields that a transform of its image alone would leave behind.

    Raises:
        ConfigError: names them.
    """
    lost = [name for name in record if name != "image" and isinstance(kind_of(name), Grid | Boxes)]
    if lost:
        raise ConfigError(
            f"{who} moves the pixels of the image alone and cannot carry "
            f"{', '.join(map(repr, lost))}; leave it out, or take these fields out of the source"
        )


def stack(records: Sequence[Batch], max_boxes: int | None = None) -> Batch:
    """One batch of several records, each field with a new first axis.

    Args:
        max_boxes: rows of boxes and of what goes with them in the batch; the field "NAME_valid"
            (bool, [b, max_boxes]) of boxes says which are real. None: all have the same number.

    Raises:
        DataError: images are not uint8 [h, w, c]; records differ in a field's shape or presence;
            or one has more boxes than `max_boxes`.
    """
    names = records[0].keys()
    for record in records:
        if record.keys() != names:
            raise DataError(
                f"records of one batch have different fields, {sorted(names)} and "
                f"{sorted(record)}; choose common ones with fields=[...]"
            )
    batch: Batch = {}
    for name in names:
        batch |= kind_of(name).stack(name, [record[name] for record in records], max_boxes)
    return batch


def shapes(names: Sequence[str], dimensions: Dimensions) -> Shapes:
    """Shapes and dtypes of these fields as `stack` gives them, without the batch's axis.

    Raises:
        ConfigError: a field is a plain value, or boxes have no fixed number of rows.
    """
    found: Shapes = {}
    for name in names:
        found |= kind_of(name).shapes(name, dimensions)
    return found


def _inside(box: Box, size: Size) -> Box:
    """The part of a box that lies in an image of this size."""
    top, left, height, width = box
    return top, left, min(height, size[0] - top), min(width, size[1] - left)


def _moved(record: Record, change: Callable[[Kind, Any], Any]) -> Record:
    return {
        name: change(FIELDS[name], value) if name in FIELDS else value
        for name, value in record.items()
    }


def _without_empty(record: Record) -> Record:
    for name in tuple(record):
        kept = kind_of(name).kept(record[name])
        if kept is None or kept.all():
            continue
        record = keep_boxes(record, kept, name)
    return record
