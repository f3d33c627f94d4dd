"""The augmentation of semantic segmentation: random sizes, crops with several classes, padding.

Transforms as those of `vadapt.data.transforms`; images are resized as OpenCV does it.
The order of mmsegmentation, which Rein and PAD use: resize, `RandomCrop`, `HorizontalFlip`,
`PhotometricDistortion`, `PadTo`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from vadapt.data import fields
from vadapt.data.fields import Record
from vadapt.data.label_maps import IGNORE
from vadapt.data.resampling import Box, Size, resize_opencv
from vadapt.errors import ConfigError

LabelsIn = Callable[[Box], np.ndarray]  # the classes of the pixels that a box frames


def short_edge_size(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """(height, width) whose shorter side is `short`, or less, so that none exceeds `longest`.

    >>> short_edge_size(1052, 1914, 512, 2048), short_edge_size(300, 2000, 1024, 2048)
    ((512, 932), (307, 2048))
    """
    scale = short / min(height, width)
    sides = [short if side == min(height, width) else side * scale for side in (height, width)]
    if max(sides) > longest:
        sides = [side * (longest / max(sides)) for side in sides]
    return int(sides[0] + 0.5), int(sides[1] + 0.5)


def fit_size(height: int, width: int, longest: int, shortest: int) -> tuple[int, int]:
    """The largest (height, width) of this aspect, sides at most `longest` and `shortest`.

    >>> fit_size(1080, 1920, 2048, 512)
    (512, 910)
    """
    scale = min(longest / max(height, width), shortest / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


@dataclasses.dataclass(frozen=True)
class RandomShortEdge:
    """Resizes to a random one of these lengths of the shorter side, no side above `longest`."""

    shorts: tuple[int, ...]
    longest: int

    def __post_init__(self) -> None:
        if not self.shorts or min(*self.shorts, self.longest) < 1:
            raise ConfigError(f"shorts {self.shorts} and longest {self.longest}: sides in pixels")

    def new_size(self, old: Size, rng: np.random.Generator) -> Size:
        """The random (height, width) of an image of another size."""
        short = self.shorts[int(rng.integers(len(self.shorts)))]
        return short_edge_size(*old, short, self.longest)

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        return fields.resize(record, self.new_size(fields.frame_size(record), rng), resize_opencv)


@dataclasses.dataclass(frozen=True)
class ResizeToFit:
    """Resizes into sides of `longest` and `shortest` times a random ratio; the aspect is kept.

    With `masks` False all but images keeps its size, as for evaluation at the size of the labels.
    """

    longest: int
    shortest: int
    ratio: tuple[float | int, float | int] = (1.0, 1.0)
    masks: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.shortest <= self.longest or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(
                f"longest {self.longest}, shortest {self.shortest}, ratio {self.ratio}: sides and "
                "a range (least, most), all above 0"
            )

    def new_size(self, old: Size, rng: np.random.Generator) -> Size:
        """The (height, width) of an image of another size."""
        low, high = self.ratio
        ratio = low if low == high else rng.uniform(low, high)
        return fit_size(*old, int(self.longest * ratio), int(self.shortest * ratio))

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        size = self.new_size(fields.frame_size(record), rng)
        return fields.resize(record, size, resize_opencv, images_only=not self.masks)


@dataclasses.dataclass(frozen=True)
class ResizeTo:
    """Resizes the whole image to (height, width), whatever becomes of its aspect."""

    size: Size

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ConfigError(f"size is {self.size}; it must be (height, width) in pixels")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        return fields.resize(record, self.size, resize_opencv)


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Cuts a random part of this size in which no class has too large a share.

    The cut is drawn anew, up to `attempts` times, while one class has `max_share` or more of the
    pixels that count, or there is only one; the last is kept whatever it holds. What the image
    lacks of the size stays lacking: see `PadTo`.
    """

    size: tuple[int, int]
    max_share: float | int = 0.75
    attempts: int = 10

    def __post_init__(self) -> None:
        if min(self.size) < 1 or not 0 < self.max_share <= 1 or self.attempts < 0:
            raise ConfigError(
                f"size {self.size}, max_share {self.max_share}, attempts {self.attempts}: expected "
                "(height, width) in pixels, a share up to 1 (any crop will do), 0 or more"
            )

    def box(self, image: Size, rng: np.random.Generator, labels: LabelsIn | None) -> Box:
        """The random part of an image of this size; any part will do without `labels`."""
        height, width = (min(sides) for sides in zip(image, self.size, strict=True))
        boxes = (
            (
                int(rng.integers(image[0] - height + 1)),
                int(rng.integers(image[1] - width + 1)),
                height,
                width,
            )
            for _ in range(1 + self.attempts)
        )
        if labels is None or self.max_share == 1:
            return next(boxes)
        return balanced_box(labels, boxes, self.max_share)

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        kind, mask = fields.kind_of("mask"), record.get("mask")
        labels = None if mask is None else lambda box: kind.crop(mask, box)
        return fields.crop(record, self.box(fields.frame_size(record), rng, labels))


def balanced_box(labels: LabelsIn, boxes: Iterable[Box], max_share: float | int) -> Box:
    """The first box that holds two classes or more, each below the share; or the last.

    Pixels of 255 do not count. No more boxes are drawn than are looked at.
    """
    box = (0, 0, 0, 0)
    for box in boxes:
        counts = np.bincount(labels(box).ravel(), minlength=IGNORE + 1)
        counts[IGNORE] = 0
        if np.count_nonzero(counts) > 1 and counts.max() < max_share * counts.sum():
            break
    return box


@dataclasses.dataclass(frozen=True)
class ResizedCrop:
    """`resize` and then `crop`, to the bit, which resizes no more of the image than is kept."""

    resize: RandomShortEdge | ResizeToFit
    crop: RandomCrop

    def __post_init__(self) -> None:
        if isinstance(self.resize, ResizeToFit) and not self.resize.masks:
            raise ConfigError(f"{self.resize} leaves the masks, and a crop needs them of one size")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        old = fields.frame_size(record)
        size = self.resize.new_size(old, rng)
        kind, mask = fields.kind_of("mask"), record.get("mask")

        def labels(box: Box) -> np.ndarray:
            return kind.resize_part(mask, old, size, resize_opencv, box)

        box = self.crop.box(size, rng, None if mask is None else labels)
        return fields.resize_part(record, size, box, resize_opencv)


@dataclasses.dataclass(frozen=True)
class PadTo:
    """Pads to a size at the right and the bottom: images with a colour, masks with 255.

    Published code pads after normalisation, with 0: with the mean, which no 8-bit colour equals.
    So the record gets "size", the image's (height, width) before, int32, by which
    `vadapt.tasks.inputs.blank_padding` makes it exact on the device. The colour is the mean rounded
    (ImageNet's, if nothing else is given), for those who do without: they err by half a grey level.
    """

    size: tuple[int, int]
    colour: tuple[int, int, int] = (124, 116, 104)

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        height, width = fields.frame_size(record)
        if height > self.size[0] or width > self.size[1]:
            raise ConfigError(
                f"an image of {height}x{width} cannot be padded to {self.size}; crop it before"
            )
        size = np.array([height, width], np.int32)
        return fields.pad(record, self.size, self.colour) | {"size": size}
