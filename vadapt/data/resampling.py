"""Resizing arrays: images as Pillow and as OpenCV do it, labels by nearest, maps of numbers.

Images may also be arrays that JAX traces, so that an exported program resizes as the data did.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import Image

from vadapt.data import opencv

Size = tuple[int, int]  # height, width, in pixels
Box = tuple[int, int, int, int]  # top, left, height, width, in pixels

_WEIGHT_BITS = 11  # of the weights of neighbors, as in OpenCV
_PILLOW_BITS = 22  # of those of Pillow's filters
_BLOCK = 1 << 17  # numbers of an image that are resized at a time


@runtime_checkable
class Filter(Protocol):
    """Resizes images; where a box is given, it returns that part of the result."""

    def __call__(self, image: Any, size: Size, *, box: Box | None = None) -> Any: ...


class _Neighbors(NamedTuple):
    """The two old pixels beside every new one along an axis, and the weight of each."""

    low: np.ndarray
    high: np.ndarray
    before: np.ndarray
    behind: np.ndarray


def resize_pillow(
    image: UInt8[Any, "h w c"],
    size: Size,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
    *,
    box: Box | None = None,
) -> UInt8[Any, "_ _ c"]:
    """Resize to (height, width) with a filter of Pillow's, which widens when it shrinks.

    That is antialiasing, and what torchvision does to the Pillow images that it is given. Arrays
    other than NumPy's are always resized with the bicubic filter, in whole numbers as Pillow has
    them.

    Args:
        box: the part of the result that is wanted. All of it is computed: Pillow rounds the
            weights of a part by another start.
    """
    if image.shape[:2] == size:
        return cut(image, box)
    if not isinstance(image, np.ndarray):
        return cut(_resize_bicubic(image, size), box)
    # Grey shown in three channels is a view of one: a third of the work, and the same numbers.
    grey = image.shape[-1] == 1 or image.strides[-1] == 0
    flat = image[..., 0] if grey else image
    resized = Image.fromarray(np.ascontiguousarray(flat)).resize((size[1], size[0]), resample)
    if grey and image.shape[-1] == 3:
        resized = Image.merge("RGB", (resized,) * 3)
    return cut(np.asarray(resized).reshape(*size, image.shape[-1]), box)


def _resize_bicubic(image: Any, size: Size) -> Any:
    """`resize_pillow` in arithmetic that every kind of array has."""
    old = (int(image.shape[0]), int(image.shape[1]))
    for axis in (0, 1) if _rows_first(old, size) else (1, 0):
        if old[axis] == size[axis]:
            continue
        first, weights = _bicubic_weights(old[axis], size[axis])
        wide, total = image.astype(np.int32), np.int32(1 << (_PILLOW_BITS - 1))
        for number, weight in enumerate(weights):
            places = np.minimum(first + number, old[axis] - 1)
            weight = weight[:, None, None] if axis == 0 else weight[None, :, None]
            total = total + wide.take(places, axis=axis) * weight
        image = (total >> _PILLOW_BITS).clip(0, 255).astype(np.uint8)
    return image


@functools.lru_cache(maxsize=8)
def _rows_first(old: Size, new: Size) -> bool:
    """Return whether Pillow shrinks rows first: it rounds between the two, and versions differ.

    So it is asked, with an image of noise.
    """
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, old, np.uint8))

    def resized(image: Image.Image, size: Size) -> Image.Image:
        return image.resize((size[1], size[0]), Image.Resampling.BICUBIC)

    wanted = np.asarray(resized(noise, new))
    misses = [
        np.count_nonzero(np.asarray(resized(resized(noise, between), new)) != wanted)
        for between in ((old[0], new[1]), (new[0], old[1]))
    ]
    return bool(misses[1] < misses[0])


def _bicubic_weights(old: int, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for every new pixel along an axis the first old one that it is made of, and weights.

    Of that one and those after it, int32 [taps, new], in units of 2 ** -22; sums are 1.
    """
    scale = old / new
    wider = max(scale, 1.0)  # of the filter, to keep what shrinks from aliasing
    centers = (np.arange(new) + 0.5) * scale
    first = (centers - 2 * wider + 0.5).astype(np.int32).clip(0)
    last = (centers + 2 * wider + 0.5).astype(np.int32).clip(None, old)
    taps = first + np.arange(math.ceil(2 * wider) * 2 + 1)[:, None]
    x = np.abs((taps - centers + 0.5) * (1 / wider))
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    weights[taps >= last] = 0
    total = np.zeros(new)
    for row in weights:
        total += row
    whole = weights / total * (1 << _PILLOW_BITS)
    return first, np.trunc(whole + np.copysign(0.5, whole)).astype(np.int32)


def resize_opencv(
    image: UInt8[Any, "h w c"], size: Size, *, box: Box | None = None
) -> UInt8[Any, "_ _ c"]:
    """Resize to (height, width) between the four nearest pixels, never more: no antialiasing.

    Half-pixel centers and weights of 11 bits: to the bit what OpenCV's INTER_LINEAR gives, which
    does it where it is installed and proves equal (`vadapt.data.opencv`).

    Args:
        box: the part of the result that is wanted; no other is computed.
    """
    if image.shape[:2] == size:
        return cut(image, box)
    if not isinstance(image, np.ndarray):
        return cut(_resize_bilinear(image, size), box)
    if image.shape[-1] > 1 and image.strides[-1] == 0:  # grey shown in several channels
        grey = resize_opencv(image[..., :1], size, box=box)
        return np.broadcast_to(grey, (*grey.shape[:2], image.shape[-1]))
    box = (0, 0, *size) if box is None else box
    # OpenCV knows no parts, and takes about as long for all as `_between` for a quarter.
    if image.shape[-1] in (1, 3) and 4 * box[2] * box[3] >= size[0] * size[1]:
        fast = opencv.resize_like(_resize_part)
        if fast is not None:
            return cut(fast(image, size), box)
    return _resize_part(image, size, box)


def _resize_part(image: np.ndarray, size: Size, box: Box | None = None) -> np.ndarray:
    top, left, height, width = (0, 0, *size) if box is None else box
    rows = _weighted(image.shape[0], size[0], slice(top, top + height))
    columns = _weighted(image.shape[1], size[1], slice(left, left + width))
    return _between(image, rows, columns)


def _resize_bilinear(image: Any, size: Size) -> Any:
    """`resize_opencv` in arithmetic that every kind of array has."""
    (top, bottom, above, below), (left, right, before, behind) = (
        _weighted(old, new, slice(None)) for old, new in zip(image.shape, size, strict=False)
    )
    wide = image.astype(np.int32)
    before, behind = before[None, :, None], behind[None, :, None]
    rows = wide.take(left, axis=1) * before + wide.take(right, axis=1) * behind
    rows >>= 4  # so that the products fit 32 bits
    upper = rows.take(top, axis=0) * above[:, None, None] >> 16
    lower = rows.take(bottom, axis=0) * below[:, None, None] >> 16
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def _between(image: np.ndarray, rows: _Neighbors, columns: _Neighbors) -> np.ndarray:
    """Return the pixels between these rows and columns, some rows at a time: a cache holds them."""
    channels = image.shape[-1]
    image = image[:, columns.low[0] : columns.high[-1] + 1]
    places = np.stack([columns.low, columns.high])[..., None] - columns.low[0]
    left, right = (places * channels + np.arange(channels)).reshape(2, -1)
    before, behind = (weights.repeat(channels) for weights in columns[2:])
    found = np.empty((len(rows.low), len(left)), np.uint8)
    step = max(_BLOCK // len(left), 1)
    for start in range(0, len(found), step):
        top, bottom, above, below = (values[start : start + step] for values in rows)
        if bottom[-1] - top[0] < 2 * len(top):
            source = image[top[0] : bottom[-1] + 1]
            top, bottom = top - top[0], bottom - top[0]
        else:  # there are rows between them that nobody needs
            source = image[np.concatenate([top, bottom])]
            top, bottom = np.arange(2 * len(top)).reshape(2, -1)
        source = np.ascontiguousarray(source).reshape(len(source), -1)
        lines = np.multiply(source.take(left, 1), before, dtype=np.int32)
        lines += np.multiply(source.take(right, 1), behind, dtype=np.int32)
        lines >>= 4  # so that the products fit 32 bits
        upper, lower = lines.take(top, 0), lines.take(bottom, 0)
        upper *= above[:, None]
        lower *= below[:, None]
        upper >>= 16
        lower >>= 16
        upper += lower
        upper += 2
        found[start : start + step] = upper >> 2
    return found.reshape(*found.shape[:1], -1, channels)


def _weighted(old: int, new: int, part: slice) -> _Neighbors:
    """Return what lies beside new pixels along an axis, of this part of them."""
    low, high, weight = _neighbors(old, new)

    def whole(values: np.ndarray) -> np.ndarray:
        return np.rint(values * np.float32(1 << _WEIGHT_BITS)).astype(np.int32)

    return _Neighbors(low[part], high[part], whole(1 - weight[part]), whole(weight[part]))


def _neighbors(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
        low, high, weight = _neighbors(values.shape[axis], new)
        weight = weight.reshape(-1, *[1] * (values.ndim - 1 - axis)).astype(values.dtype)
        values = values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight
    return values


def resize_nearest(
    mask: Shaped[np.ndarray, "h w *rest"], size: Size, *, box: Box | None = None
) -> Shaped[np.ndarray, "_ _ *rest"]:
    """Resize labels to (height, width): every new cell takes the old one under its center.

    Args:
        box: the part of the result that is wanted; no other is computed.
    """
    top, left, height, width = (0, 0, *size) if box is None else box
    rows = (np.arange(top, top + height) + 0.5) * (mask.shape[0] / size[0])
    columns = (np.arange(left, left + width) + 0.5) * (mask.shape[1] / size[1])
    return mask.take(rows.astype(np.int64), 0).take(columns.astype(np.int64), 1)


def cut(image: Shaped[Any, "h w *rest"], box: Box | None) -> Shaped[Any, "_ _ *rest"]:
    """Return a view of the part that a box frames; without one, of all."""
    if box is None:
        return image
    top, left, height, width = box
    return image[top : top + height, left : left + width]
