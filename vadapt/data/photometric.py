"""Photometric distortion of 8-bit colour images: brightness, contrast, saturation and hue."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from vadapt.data.fields import Record

_SHIFT = 12  # bits after the point in the tables of `rgb_to_hsv`
_HUES = 180  # two degrees a step, so that they fit 8 bits
_DIVISORS = np.arange(1, 256)
_SATURATION = np.r_[0, np.rint((255 << _SHIFT) / _DIVISORS)].astype(np.int32)
_HUE = np.r_[0, np.rint((_HUES << _SHIFT) / (6.0 * _DIVISORS))].astype(np.int32)
# By sixth of the circle: which of (v, low, falling, rising) are red, green and blue.
_SECTORS = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])


class PhotometricDraws(NamedTuple):
    """The draws of one distortion; None leaves a step out.

    `contrast_last` puts contrast after the hue, else it comes before the saturation.
    """

    brightness: float | None = None
    contrast: float | None = None
    contrast_last: bool = False
    saturation: float | None = None
    hue: int | None = None


def distort(
    image: UInt8[np.ndarray, "h w c"], draws: PhotometricDraws
) -> UInt8[np.ndarray, "h w c"]:
    """Adds `brightness`, multiplies by `contrast`, saturation in HSV, turns the hue by `hue` steps.

    RGB, or one channel, which has neither saturation nor hue. Every step ends in 0..255, cut to
    whole numbers; steps of the hue are two degrees.
    """
    if draws.brightness is not None:
        image = _linear(image, 1.0, draws.brightness)
    if draws.contrast is not None and not draws.contrast_last:
        image = _linear(image, draws.contrast, 0.0)
    if draws.saturation is not None and image.shape[-1] == 3:
        hsv = rgb_to_hsv(image)
        hsv[..., 1] = _linear(hsv[..., 1], draws.saturation, 0.0)
        image = hsv_to_rgb(hsv)
    if draws.hue is not None and image.shape[-1] == 3:
        hsv = rgb_to_hsv(image)
        hsv[..., 0] = (hsv[..., 0].astype(np.int32) + draws.hue) % _HUES
        image = hsv_to_rgb(hsv)
    if draws.contrast is not None and draws.contrast_last:
        image = _linear(image, draws.contrast, 0.0)
    return image


@dataclasses.dataclass(frozen=True)
class PhotometricDistortion:
    """Distorts the colours of "image" at random, each step half of the time.

    Attributes:
        brightness: up to so many grey levels more or less.
        contrast: range of the factor; `saturation` likewise.
        hue: from -hue to hue - 1 steps of two degrees.
    """

    brightness: int = 32
    contrast: tuple[float | int, float | int] = (0.5, 1.5)
    saturation: tuple[float | int, float | int] = (0.5, 1.5)
    hue: int = 18

    def draw(self, rng: np.random.Generator) -> PhotometricDraws:
        """The numbers of one distortion."""

        def maybe(low: float, high: float) -> float | None:
            return rng.uniform(low, high) if rng.random() < 0.5 else None

        return PhotometricDraws(
            brightness=maybe(-self.brightness, self.brightness),
            contrast=maybe(*self.contrast),
            contrast_last=bool(rng.random() < 0.5),
            saturation=maybe(*self.saturation),
            hue=int(rng.integers(-self.hue, self.hue)) if rng.random() < 0.5 else None,
        )

    def __call__(self, record: Record, rng: np.random.Generator) -> Record:
        return record | {"image": distort(record["image"], self.draw(rng))}


def rgb_to_hsv(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Hue 0..179 (two degrees a step), saturation and value 0..255, to the bit as OpenCV."""
    red, green, blue = np.moveaxis(image.astype(np.int32), -1, 0)
    value = np.maximum(np.maximum(red, green), blue)
    span = value - np.minimum(np.minimum(red, green), blue)
    half = 1 << _SHIFT - 1
    saturation = span * _SATURATION.take(value) + half >> _SHIFT
    hue = np.where(
        value == red,
        green - blue,
        np.where(value == green, blue - red + 2 * span, red - green + 4 * span),
    )
    hue = hue * _HUE.take(span) + half >> _SHIFT
    hue += np.where(hue < 0, _HUES, 0)
    return np.stack([hue, saturation, value], -1).astype(np.uint8)


def hsv_to_rgb(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The inverse of `rgb_to_hsv`, to the bit as OpenCV's scalar code.

    OpenCV's vector code cuts where that rounds, and may give 1 less in wide images.
    """
    hue, saturation, value = np.moveaxis(image.astype(np.float32), -1, 0)
    unit = np.float32(1 / 255)
    hue, saturation, value = hue * np.float32(6 / _HUES), saturation * unit, value * unit
    sector = np.floor(hue)
    share = hue - sector

    def less(factor: np.ndarray) -> np.ndarray:
        """1 - saturation * factor, rounded once (a fused multiply-add)."""
        return (1 - saturation.astype(np.float64) * factor).astype(np.float32)

    candidates = np.stack(
        [value, value * (1 - saturation), value * less(share), value * less(1 - share)], -1
    )
    chosen = np.take_along_axis(candidates, _SECTORS[sector.astype(np.int32) % 6], -1)
    return np.rint(chosen * np.float32(255)).astype(np.uint8)


def _linear(
    values: UInt8[np.ndarray, "*shape"], gain: float | int, offset: float | int
) -> UInt8[np.ndarray, "*shape"]:
    table = np.arange(256, dtype=np.float32) * np.float32(gain) + np.float32(offset)
    return np.clip(table, 0, 255).astype(np.uint8).take(values)
