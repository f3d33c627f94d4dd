"""Photometric distortion of 8-bit colour images: brightness, contrast, saturation and hue."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from vadapt.data.fields import Record

_SHIFT = 12  # bits after the point in the tables of `rgb_to_hsv`
_HUES = 180  # two degrees a step, so that they fit 8 bits
_DIVISORS = np.arange(1, 256)
_SATURATION = np.r_[0, np.rint((255 << _SHIFT) / _DIVISORS)].astype(np.int32)
_HUE = np.r_[0, np.rint((_HUES << _SHIFT) / (6.0 * _DIVISORS))].astype(np.int32)
# By sixth of the circle: which of (v, low, falling, rising) are red, green and blue.
_SECTORS = np.array([[0, 3, 1], [2, 0, 1], [1, 0, 3], [1, 2, 0], [3, 1, 0], [0, 1, 2]])
_BLOCK = 1 << 15  # pixels that are distorted at a time: a cache holds them

Channels = Iterable[np.ndarray]  # three, uint8, of one shape


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
        image = _linear(1.0, draws.brightness).take(image)
    if draws.contrast is not None and not draws.contrast_last:
        image = _linear(draws.contrast, 0.0).take(image)
    if image.shape[-1] == 3:
        tables = []
        if draws.saturation is not None:
            tables.append((1, _linear(draws.saturation, 0.0)))
        if draws.hue is not None:
            tables.append((0, ((np.arange(256) + draws.hue) % _HUES).astype(np.uint8)))
        image = _looked_up(image, tables)
    if draws.contrast is not None and draws.contrast_last:
        image = _linear(draws.contrast, 0.0).take(image)
    return image


def _looked_up(
    image: UInt8[np.ndarray, "h w 3"], tables: Sequence[tuple[int, UInt8[np.ndarray, "256"]]]
) -> UInt8[np.ndarray, "h w 3"]:
    """Look up hue (0) or saturation (1) in each table; after each the image is RGB again."""
    if not tables:
        return image
    pixels = image.reshape(-1, 3)
    found = np.empty(pixels.shape, np.uint8)
    for start in range(0, len(pixels), _BLOCK):
        part = slice(start, start + _BLOCK)
        channels = tuple(np.ascontiguousarray(pixels[part].T))
        for number, table in tables:
            hsv = list(_to_hsv(channels))
            hsv[number] = table.take(hsv[number])
            channels = _to_rgb(hsv)
        for number, channel in enumerate(channels):
            found[part, number] = channel
    return found.reshape(image.shape)


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
    return np.stack(_to_hsv(np.moveaxis(image, -1, 0)), -1)


def hsv_to_rgb(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The inverse of `rgb_to_hsv`, to the bit as OpenCV's scalar code.

    OpenCV's vector code cuts where that rounds, and may give 1 less in wide images.
    """
    return np.stack(_to_rgb(np.moveaxis(image, -1, 0)), -1)


def _to_hsv(channels: Channels) -> tuple[np.ndarray, ...]:
    red, green, blue = channels
    value = np.maximum(np.maximum(red, green), blue)
    span = value - np.minimum(np.minimum(red, green), blue)
    at_red, at_green = value == red, value == green
    red, green, blue, wide = (channel.astype(np.int16) for channel in (red, green, blue, span))
    turned = np.where(
        at_red,
        green - blue,
        np.where(at_green, blue - red + 2 * wide, red - green + 4 * wide),
    )
    half = 1 << _SHIFT - 1
    hue = _HUE.take(span) * turned + half >> _SHIFT
    hue += (hue < 0) * np.int32(_HUES)
    saturation = _SATURATION.take(value) * span + half >> _SHIFT
    return hue.astype(np.uint8), saturation.astype(np.uint8), value


def _to_rgb(channels: Channels) -> tuple[np.ndarray, ...]:
    hue, saturation, value = channels
    place = hue.astype(np.intp) << 8 | saturation
    light = (np.arange(256, dtype=np.float32) * np.float32(1 / 255)).take(value)
    return tuple(
        np.rint(share.take(place) * light * np.float32(255)).astype(np.uint8) for share in _shares()
    )


@functools.cache
def _shares() -> Float32[np.ndarray, "3 65536"]:
    """Red, green and blue as shares of the value, by hue * 256 + saturation."""
    hue, saturation = (
        axis.ravel().astype(np.float32) for axis in np.indices((256, 256), dtype=np.uint8)
    )
    hue, saturation = hue * np.float32(6 / _HUES), saturation * np.float32(1 / 255)
    sector = np.floor(hue)
    share = hue - sector

    def less(factor: np.ndarray) -> np.ndarray:
        """1 - saturation * factor, rounded once (a fused multiply-add)."""
        return (1 - saturation.astype(np.float64) * factor).astype(np.float32)

    candidates = np.stack(
        [np.ones_like(saturation), 1 - saturation, less(share), less(1 - share)], -1
    )
    chosen = np.take_along_axis(candidates, _SECTORS[sector.astype(np.int32) % 6], -1)
    return np.ascontiguousarray(chosen.T)


def _linear(gain: float | int, offset: float | int) -> UInt8[np.ndarray, "256"]:
    """Return gain * x + offset for every 8-bit x, cut to whole numbers within 0..255."""
    table = np.arange(256, dtype=np.float32) * np.float32(gain) + np.float32(offset)
    return np.clip(table, 0, 255).astype(np.uint8)
