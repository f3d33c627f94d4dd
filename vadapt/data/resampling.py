"""Resizing arrays: images as Pillow and as OpenCV do it, labels by nearest, maps of numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

Size = tuple[int, int]  # height, width, in pixels
Filter = Callable[[np.ndarray, Size], np.ndarray]  # of images

_WEIGHT_BITS = 11  # of the weights of neighbours, as in OpenCV


def resize_pillow(
    image: UInt8[np.ndarray, "h w c"],
    size: Size,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> UInt8[np.ndarray, "{size[0]} {size[1]} c"]:
    """Resize to (height, width) with a filter of Pillow's, which widens when it shrinks.

    That is antialiasing, and what torchvision does to the Pillow images that it is given.
    """
    if image.shape[:2] == size:
        return image
    # Grey shown in three channels is a view of one: a third of the work, and the same numbers.
    grey = image.shape[-1] == 1 or image.strides[-1] == 0
    flat = image[..., 0] if grey else image
    resized = Image.fromarray(np.ascontiguousarray(flat)).resize((size[1], size[0]), resample)
    if grey and image.shape[-1] == 3:
        resized = Image.merge("RGB", (resized,) * 3)
    return np.asarray(resized).reshape(*size, image.shape[-1])


def resize_opencv(
    image: UInt8[np.ndarray, "h w c"], size: Size
) -> UInt8[np.ndarray, "{size[0]} {size[1]} c"]:
    """Resize to (height, width) between the four nearest pixels, never more: no antialiasing.

    Half-pixel centres and weights of 11 bits: to the bit what OpenCV's INTER_LINEAR gives.
    """
    if image.shape[:2] == size:
        return image
    (top, bottom, above, below), (left, right, before, behind) = (
        _weighted(old, new) for old, new in zip(image.shape, size, strict=False)
    )
    wide = image.astype(np.int32)
    rows = wide.take(left, 1) * before[:, None] + wide.take(right, 1) * behind[:, None]
    rows >>= 4  # so that the products fit 32 bits
    upper = rows.take(top, 0) * above[:, None, None] >> 16
    lower = rows.take(bottom, 0) * below[:, None, None] >> 16
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def _weighted(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return for every new pixel along an axis the two old ones beside it, and their weights."""
    low, high, weight = _neighbours(old, new)

    def whole(values: np.ndarray) -> np.ndarray:
        return np.rint(values * np.float32(1 << _WEIGHT_BITS)).astype(np.int32)

    return low, high, whole(1 - weight), whole(weight)


def _neighbours(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the two old pixels beside every new one, and the weight of the second."""
    at = ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
    first = np.floor(at)
    low, high = ((first + step).clip(0, old - 1).astype(np.int32) for step in (0, 1))
    return low, high, at - first


def resize_linear(
    values: Float[np.ndarray, "h w *c"], size: Size
) -> Float[np.ndarray, "{size[0]} {size[1]} *c"]:
    """Resize a map of numbers to (height, width), linear between the four nearest: no antialiasing.

    Half-pixel centres; beyond the outer ones the map goes on as it ends.
    """
    if values.shape[:2] == size:
        return values
    for axis, new in enumerate(size):
        low, high, weight = _neighbours(values.shape[axis], new)
        weight = weight.reshape(-1, *[1] * (values.ndim - 1 - axis)).astype(values.dtype)
        values = values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight
    return values


def resize_nearest(
    mask: Shaped[np.ndarray, "h w *rest"], size: Size
) -> Shaped[np.ndarray, "{size[0]} {size[1]} *rest"]:
    """Resize labels to (height, width): every new cell takes the old one under its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
        for new, old in zip(size, mask.shape, strict=False)
    )
    return mask[rows[:, None], columns]
