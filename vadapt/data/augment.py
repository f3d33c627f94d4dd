"""Augmentation of images with labels: mixed crops of one image, erasing, colours.

Transforms as those of `vadapt.data.transforms`, of 8-bit images in RGB (or grey). GKGNet's order:
`CropMix`, `HorizontalFlip`, `RandomErasing`, `ColourJitter`, `TrivialAugment`.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float32
from PIL import Image

from vadapt.data.auto_augment import apply_operation
from vadapt.data.fields import Record, refuse_geometry
from vadapt.data.resampling import resize_pillow
from vadapt.data.transforms import random_resized_crop_box
from vadapt.errors import ConfigError

# Of ImageNet, in 0..255.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class CropMix:
    """Mixes two to four crops of one image, each from another range of scales; or resizes it.

    The labels stay: all is of one image. The number of crops is drawn for every image. (The code
    released with GKGNet draws it once for each process that reads.) Records with masks, boxes or
    flow are refused: no one place of the mix is theirs.

    Attributes:
        size: (height, width) of the result.
        probability: of mixing; else the whole image is resized, whatever becomes of its aspect.
        crops: numbers of crops to choose from.
        scale: the least share of the image that a crop takes.
        alpha: the weights of a mix of n are drawn from Beta(alpha / n, alpha / n).

    Source: CropMix, arXiv:2205.15955, as GKGNet (arXiv:2308.14378) takes it.
    """

    size: tuple[int, int]
    probability: float | int = 0.5
    crops: tuple[int, ...] = (2, 3, 4)
    scale: float = 0.01
    alpha: float | int = 0.4

    def __post_init__(self) -> None:
        _check_probability(self.probability)
        if min(*self.size, *self.crops) < 1 or not 0 < self.scale < 1 or self.alpha <= 0:
            raise ConfigError(
                f"size {self.size}, crops {self.crops}, scale {self.scale}, alpha {self.alpha}: "
                "expected pixels, numbers of crops, a share of the image, a number above 0"
            )

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        refuse_geometry(record, "CropMix")
        image = record["image"]
        if rng.random() >= self.probability:
            return record | {"image": resize_pillow(image, self.size)}
        number = int(rng.choice(self.crops))
        views = [self._view(image, area, rng) for area in crop_ranges(number, self.scale)]
        if number > 2:
            views = [views[i] for i in rng.permutation(number)]
        mixed = views[0]
        for view in views[1:]:
            share = rng.beta(self.alpha / number, self.alpha / number)
            order = rng.permutation(image.shape[-1])  # of the weaker one's channels
            one, other = (mixed, view[..., order]) if share > 0.5 else (mixed[..., order], view)
            mixed = np.float32(share) * one + np.float32(1 - share) * other
        return record | {"image": np.clip(mixed, 0, 255).astype(np.uint8)}

    def _view(
        self, image: np.ndarray, area: tuple[float, float], rng: np.random.Generator
    ) -> Float32[np.ndarray, "h w c"]:
        rows, columns = image.shape[:2]
        top, left, height, width = random_resized_crop_box(rows, columns, rng, area)
        cut = image[top : top + height, left : left + width]
        return resize_pillow(cut, self.size, Image.Resampling.BILINEAR).astype(np.float32)


def crop_ranges(number: int, scale: float) -> list[tuple[float, float]]:
    """Ranges of the share of the image that each crop of a mix takes: bands, and nearly all.

    >>> crop_ranges(2, 0.01), crop_ranges(4, 0.01)[1]
    ([(0.01, 1.0), (0.99, 1.0)], (0.2575, 0.505))
    """
    width = (1 - scale) / max(number, 1) if number > 2 else 1 - scale
    bands = [(scale + i * width, scale + (i + 1) * width) for i in range(number - 1)]
    return [*bands, (1 - scale, 1.0)]


@dataclasses.dataclass(frozen=True)
class RandomErasing:
    """Fills a random box with noise, of the mean and spread of ImageNet's pixels.

    Attributes:
        area: range of the box's share of the image, uniform; `aspect` of its height over its
            width, log-uniform.

    Source: Random Erasing, arXiv:1708.04896.
    """

    probability: float | int = 0.5
    area: tuple[float | int, float | int] = (0.02, 1 / 3)
    aspect: tuple[float | int, float | int] = (0.3, 10 / 3)
    attempts: int = 10

    def __post_init__(self) -> None:
        _check_probability(self.probability)
        if not 0 <= self.area[0] <= self.area[1] <= 1 or not 0 < self.aspect[0] <= self.aspect[1]:
            raise ConfigError(f"area {self.area}, aspect {self.aspect}: ranges (least, most)")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        if rng.random() >= self.probability:
            return record
        height, width, channels = record["image"].shape
        for _ in range(self.attempts):
            cells = rng.uniform(*self.area) * height * width
            ratio = math.exp(rng.uniform(*np.log(self.aspect)))
            rows, columns = round(math.sqrt(cells * ratio)), round(math.sqrt(cells / ratio))
            if rows < height and columns < width:
                break
        else:
            return record
        top, left = int(rng.integers(height - rows)), int(rng.integers(width - columns))
        noise = rng.normal(MEAN[:channels], STD[:channels], (rows, columns, channels))
        image = record["image"].copy()
        image[top : top + rows, left : left + columns] = noise.clip(0, 255).astype(np.uint8)
        return record | {"image": image}


@dataclasses.dataclass(frozen=True)
class ColourJitter:
    """Changes brightness, contrast and saturation, in a random order.

    Attributes:
        brightness: the factor is 1 plus or minus up to it; `contrast` and `saturation` likewise.
    """

    brightness: float | int = 0.4
    contrast: float | int = 0.4
    saturation: float | int = 0.4

    def __post_init__(self) -> None:
        if min(self.brightness, self.contrast, self.saturation) < 0:
            raise ConfigError("brightness, contrast and saturation of ColourJitter: 0 or more")

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        image = record["image"]
        ranges = (self.brightness, self.contrast, self.saturation)
        factors = [1 + rng.uniform(0, most) * rng.choice((-1, 1)) for most in ranges]
        names = ("brightness", "contrast", "colour")
        for number in rng.permutation(3):
            image = apply_operation(image, names[number], factors[number])
        return record | {"image": image}


def _check_probability(probability: float | int) -> None:
    if not 0 <= probability <= 1:
        raise ConfigError(f"probability is {probability}; it must be within 0..1")
