"""Transforms of detection: sizes with the aspect kept, margins to fixed shapes, a bound on boxes.

Transforms as those of `vadapt.data.transforms`; images are resized as OpenCV does it. The order of
published recipes: `KeepRatioResize`, `HorizontalFlip`, `LargestBoxes`, then `PadToMultiple` or, for
one shape of all batches, `segmentation_transforms.PadTo`. A record then has "size", the image's
(height, width) before the margins, and "scale_factor", by which boxes lead back to its file.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vadapt.data import fields
from vadapt.data.fields import Record
from vadapt.data.resampling import Size, resize_opencv
from vadapt.data.segmentation_transforms import PadTo, fit_size
from vadapt.errors import ConfigError

SCALE, LEFT_OUT = "scale_factor", "boxes_left_out"


@dataclasses.dataclass(frozen=True)
class KeepRatioResize:
    """Resizes to the largest size of the image's aspect that fits; boxes are cut at its edges.

    The record gets "scale_factor", new over old (height, width), float32.

    Attributes:
        fits: (longest, shortest) sides, one pair of which is drawn for each image.
        within: a (height, width) that no image exceeds, of either orientation; () for none. An
            upright image in a wide frame gets smaller than `fits` says.

    >>> record = {"image": np.zeros((1080, 1920, 3), np.uint8)}
    >>> KeepRatioResize()(record, np.random.default_rng(0))["image"].shape
    (750, 1333, 3)
    """

    fits: tuple[tuple[int, int], ...] = ((1333, 800),)
    within: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.fits or any(not 0 < short <= long for long, short in self.fits):
            raise ConfigError(f"fits is {self.fits}; pairs (longest, shortest) of sides in pixels")
        if self.within and (len(self.within) != 2 or min(self.within) < 1):
            raise ConfigError(f"within is {self.within}; (height, width) in pixels, or ()")

    def new_size(self, old: Size, rng: np.random.Generator) -> Size:
        """The (height, width) of an image of another size."""
        longest, shortest = self.fits[int(rng.integers(len(self.fits)))]
        height, width = fit_size(*old, longest, shortest)
        if self.within and (height > self.within[0] or width > self.within[1]):
            scale = min(new / side for new, side in zip(self.within, old, strict=True))
            height, width = (int(side * scale + 0.5) for side in old)
        return max(height, 1), max(width, 1)

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        old = fields.frame_size(record)
        size = self.new_size(old, rng)
        resized = fields.resize(record, size, resize_opencv)
        scale = np.array(size, np.float32) / np.array(old, np.float32)
        return fields.crop(resized, (0, 0, *size)) | {SCALE: scale}


@dataclasses.dataclass(frozen=True)
class PadToMultiple:
    """Pads at the right and the bottom to the next sides that `multiple` divides; see `PadTo`."""

    multiple: int = 64
    colour: tuple[int, int, int] = (124, 116, 104)

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise ConfigError(f"multiple is {self.multiple}; at least 1 pixel")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        height, width = fields.frame_size(record)
        size = -height % self.multiple + height, -width % self.multiple + width
        return PadTo(size, self.colour)(record, rng)


@dataclasses.dataclass(frozen=True)
class LargestBoxes:
    """Leaves an image the largest `number` of its boxes, in their order; says how many it lost.

    Those that are ignored go first. The record gets "boxes_left_out", int32, to be summed. Without
    it an image with more than `config.data.max_boxes` is an error.
    """

    number: int

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ConfigError(f"number is {self.number}; at least 1 box is kept")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        boxes = np.asarray(record["boxes_xyxy"], np.float64)
        lost = max(len(boxes) - self.number, 0)
        if lost:
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
            ignored = record.get("box_ignored", np.zeros(len(boxes), bool))
            kept = np.zeros(len(boxes), bool)
            kept[np.lexsort((-areas, ignored))[: self.number]] = True
            record = fields.keep_boxes(record, kept)
        return record | {LEFT_OUT: np.array(lost, np.int32)}
