"""Augmentation by random operations on a whole image: TrivialAugment and RandAugment.

The operations are Pillow's; rotations and the like take nearest pixels and fill with black. They
move the image alone: records with masks, boxes or flow are refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from vadapt.data.fields import Record, refuse_geometry
from vadapt.errors import ConfigError

# Image, and how strong: of the unit that its name gives, or as much as it is.
Operation = Callable[[Image.Image, float], Image.Image]


def _affine(matrix: Callable[[Image.Image, float], tuple[float, ...]]) -> Operation:
    """An operation from the (2, 3) matrix that takes new places to old ones."""

    def operation(image: Image.Image, amount: float) -> Image.Image:
        if not amount:
            return image
        return image.transform(image.size, Image.Transform.AFFINE, matrix(image, amount))

    return operation


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, factor: kind(image).enhance(factor)


def solarize_add(image: Image.Image, amount: float) -> Image.Image:
    """Adds so many grey levels to those below 128."""
    return image.point(
        [min(v + int(amount), 255) if v < 128 else v for v in range(256)] * len(image.getbands())
    )


OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, _: image,
    "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "rotate": lambda image, degrees: image.rotate(degrees),
    "solarize": lambda image, threshold: ImageOps.solarize(image, int(threshold)),
    "solarize_add": solarize_add,
    "posterize": lambda image, bits: ImageOps.posterize(image, int(bits)),
    "colour": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": _affine(lambda _, slope: (1, slope, 0, 0, 1, 0)),
    "shear_y": _affine(lambda _, slope: (1, 0, 0, slope, 1, 0)),
    "translate_x": _affine(lambda _, pixels: (1, 0, pixels, 0, 1, 0)),
    "translate_y": _affine(lambda _, pixels: (1, 0, 0, 0, 1, pixels)),
    "translate_x_share": _affine(lambda image, share: (1, 0, share * image.width, 0, 1, 0)),
    "translate_y_share": _affine(lambda image, share: (1, 0, 0, 0, 1, share * image.height)),
}


@dataclasses.dataclass(frozen=True)
class TrivialAugment:
    """One operation out of 14, at a strength out of 31, both uniform.

    Source: TrivialAugment, arXiv:2103.10158, with the ranges of GKGNet's released code.
    """

    def draw(self, rng: np.random.Generator) -> tuple[str, float]:
        """The name of an operation, and how strong it is."""
        name = str(rng.choice(list(_TRIVIAL)))
        level, sign = int(rng.integers(31)), int(rng.choice((-1, 1)))
        return name, _TRIVIAL[name](level, sign)

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        refuse_geometry(record, "TrivialAugment")
        return record | {"image": apply_operation(record["image"], *self.draw(rng))}


# Strength by level (0..30) and sign.
_TRIVIAL: dict[str, Callable[[int, int], float]] = {
    "identity": lambda level, sign: 0.0,
    "auto_contrast": lambda level, sign: 0.0,
    "equalize": lambda level, sign: 0.0,
    "rotate": lambda level, sign: float(sign * level),
    "solarize": lambda level, sign: 256.0 - 256 * level // 30,
    "posterize": lambda level, sign: 8.0 - 4 * level // 30,
    **dict.fromkeys(
        ("colour", "contrast", "brightness", "sharpness"),
        lambda level, sign: 0.1 + 1.8 * level / 30,
    ),
    **dict.fromkeys(("shear_x", "shear_y"), lambda level, sign: sign * 0.3 * level / 30),
    **dict.fromkeys(
        ("translate_x", "translate_y"), lambda level, sign: float(sign * (10 * level // 30))
    ),
}


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Some operations out of 15 in a row, each with a probability, at strengths about one level.

    Attributes:
        level: the mean strength, 0 to 10; `spread` its standard deviation.
        number: of operations.
        probability: that an operation chosen is applied.

    Source: RandAugment, arXiv:1909.13719, with the operations and ranges that DeiT
    (arXiv:2012.12877) made the usual ones: enhancements, posterizing and solarizing grow with the
    level.
    """

    level: float | int = 9
    spread: float | int = 0.5
    number: int = 2
    probability: float | int = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 10 or self.spread < 0 or not 0 <= self.probability <= 1:
            raise ConfigError(
                f"level {self.level}, spread {self.spread}, probability {self.probability}: "
                "expected 0 to 10, 0 or more, 0 to 1"
            )

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """The operations to apply, and how strong they are."""
        drawn = []
        for name in rng.choice(list(_RAND), self.number).tolist():
            share = float(np.clip(rng.normal(self.level, self.spread), 0, 10)) / 10
            sign = int(rng.choice((-1, 1)))
            if rng.random() < self.probability:
                drawn.append((name, _RAND[name](share, sign)))
        return drawn

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        refuse_geometry(record, "RandAugment")
        image = record["image"]
        for name, amount in self.draw(rng):
            image = apply_operation(image, name, amount)
        return record | {"image": image}


# Strength by share of the greatest (0..1) and sign.
_RAND: dict[str, Callable[[float, int], float]] = {
    **dict.fromkeys(("auto_contrast", "equalize", "invert"), lambda share, sign: 0.0),
    "rotate": lambda share, sign: sign * 30 * share,
    "posterize": lambda share, sign: max(4 - int(4 * share), 1),
    "solarize": lambda share, sign: 256 - int(256 * share),
    "solarize_add": lambda share, sign: int(110 * share),
    **dict.fromkeys(
        ("colour", "contrast", "brightness", "sharpness"),
        lambda share, sign: max(1 + sign * 0.9 * share, 0.1),
    ),
    **dict.fromkeys(("shear_x", "shear_y"), lambda share, sign: sign * 0.3 * share),
    **dict.fromkeys(
        ("translate_x_share", "translate_y_share"), lambda share, sign: sign * 0.45 * share
    ),
}


def apply_operation(image: np.ndarray, name: str, amount: float) -> np.ndarray:
    """An operation of `OPERATIONS` on a uint8 [h, w, c] image."""
    if name == "identity":
        return image
    grey = image.shape[-1] == 1
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if grey else image))
    return np.asarray(OPERATIONS[name](picture, amount)).reshape(image.shape)
