"""Transforms of a record on its way into a batch: crops, flips, sizes, channels.

A transform is a small frozen dataclass, called with a record and a NumPy generator; a pipeline is a
list of them. The geometric ones end in `vadapt.data.fields`, which moves all fields of a record.
Normalisation is no transform: it happens on the device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from vadapt.data import fields
from vadapt.data.decode import to_channels
from vadapt.data.fields import Record
from vadapt.data.kinds import Box
from vadapt.data.resampling import Size
from vadapt.errors import ConfigError

Transform = Callable[[Record, np.random.Generator], Record]


def apply_all(transforms: Sequence[Transform], record: Record, rng: np.random.Generator) -> Record:
    """The record after every transform in turn, all drawing from one generator."""
    for transform in transforms:
        record = transform(record, rng)
    return record


def crop_and_resize(record: Record, box: Box, size: Size) -> Record:
    """Cut a box from a record and resize what it holds, images with Pillow's bicubic filter.

    Every rule that draws boxes ends here. The filter sees the box alone, no pixel beyond its edge.

    Args:
        box: (top, left, height, width) in pixels, inside the image.
        size: (height, width) of the result.
    """
    return fields.resize(fields.crop(record, box), size)


def random_resized_crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float | int, float | int] = (0.2, 1.0),
    aspect: tuple[float | int, float | int] = (3 / 4, 4 / 3),
    attempts: int = 10,
) -> Box:
    """Draws a crop of random area and aspect (top, left, height, width), torchvision's rule.

    Area (as a share of the image's) is uniform, aspect (width over height) log-uniform, and the
    place uniform among those inside the image. When no attempt fits, it is the largest centred
    crop whose aspect lies in the range, whatever its area.
    """
    log_aspect = (math.log(aspect[0]), math.log(aspect[1]))
    for _ in range(attempts):
        cells = rng.uniform(*area) * height * width
        ratio = math.exp(rng.uniform(*log_aspect))
        crop_width = round(math.sqrt(cells * ratio))
        crop_height = round(math.sqrt(cells / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    crop_height, crop_width = height, width
    if width / height < aspect[0]:
        crop_height = max(1, round(width / aspect[0]))
    elif width / height > aspect[1]:
        crop_width = max(1, round(height * aspect[1]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """Cuts a random part of the image and resizes it: see `random_resized_crop_box`.

    >>> record = {"image": np.zeros((40, 60, 3), np.uint8)}
    >>> RandomResizedCrop((16, 16))(record, np.random.default_rng(0))["image"].shape
    (16, 16, 3)
    """

    size: Size
    area: tuple[float | int, float | int] = (0.2, 1.0)
    aspect: tuple[float | int, float | int] = (3 / 4, 4 / 3)
    attempts: int = 10

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ConfigError(f"area is {self.area}; it must be (least, most) within 0..1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ConfigError(f"aspect is {self.aspect}; it must be (least, most), both above 0")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        height, width = fields.frame_size(record)
        box = random_resized_crop_box(height, width, rng, self.area, self.aspect, self.attempts)
        return crop_and_resize(record, box, self.size)


@dataclasses.dataclass(frozen=True)
class HorizontalFlip:
    """Mirrors left and right, with a probability."""

    probability: float | int = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(f"probability is {self.probability}; it must be within 0..1")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        if rng.random() >= self.probability:
            return record
        return fields.flip(record)


@dataclasses.dataclass(frozen=True)
class Resize:
    """Resizes the whole image to (height, width), whatever becomes of its aspect."""

    size: Size

    def __post_init__(self) -> None:
        _check_size(self.size)

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        return fields.resize(record, self.size)


@dataclasses.dataclass(frozen=True)
class ResizeCenterCrop:
    """Resizes with the aspect kept until `size` is just covered, then cuts its centre.

    With `fraction` below 1 the centre is that share of the covered part: 0.875 with size (224, 224)
    is the usual evaluation of ImageNet, resize the shorter side to 256 and cut 224.
    """

    size: Size
    fraction: float | int = 1.0

    def __post_init__(self) -> None:
        _check_size(self.size)
        if not 0 < self.fraction <= 1:
            raise ConfigError(f"fraction is {self.fraction}; it must be above 0 and at most 1")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        record, spare = self.resized(record)
        top, left = (round(pixels / 2) for pixels in spare)
        return fields.crop(record, (top, left, *self.size))

    def resized(self, record: Record) -> tuple[Record, Size]:
        """The record to be cut, and by how much its (height, width) exceed `size`."""
        old_height, old_width = fields.frame_size(record)
        height, width = (round(side / self.fraction) for side in self.size)
        scale = max(height / old_height, width / old_width)
        # The longer side is cut to a whole pixel and the offset rounded, as torchvision does.
        height, width = max(height, int(old_height * scale)), max(width, int(old_width * scale))
        record = fields.resize(record, (height, width))
        return record, (height - self.size[0], width - self.size[1])


@dataclasses.dataclass(frozen=True)
class ResizeRandomCrop(ResizeCenterCrop):
    """As `ResizeCenterCrop`, cut at a random place.

    >>> record = {"image": np.zeros((40, 60, 3), np.uint8)}
    >>> ResizeRandomCrop((28, 28), 0.875)(record, np.random.default_rng(0))["image"].shape
    (28, 28, 3)
    """

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        record, spare = self.resized(record)
        top, left = (int(rng.integers(pixels + 1)) for pixels in spare)
        return fields.crop(record, (top, left, *self.size))


@dataclasses.dataclass(frozen=True)
class Channels:
    """Gives the image 1 channel (luma of colour, ITU-R 601) or 3 (grey repeated)."""

    channels: int

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ConfigError(f"channels is {self.channels}; it must be 1 (grey) or 3 (colour)")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        return record | {"image": to_channels(record["image"], self.channels)}


def _check_size(size: Size) -> None:
    if min(size) < 1:
        raise ConfigError(f"size is {size}; it must be (height, width), both at least 1 pixel")
