"""Images that callers give: arrays, Pillow's, paths; whatever is wrong with them is said here."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vadapt.data.decode import decode_image, from_pillow, to_channels
from vadapt.errors import DataError

_CHANNELS = (1, 3)
_EXPECTED = "expected [h, w, 3] or [n, h, w, 3]"


def read_images(given: Any) -> tuple[list[UInt8[np.ndarray, "_h _w 3"]], bool]:
    """Images as uint8 RGB, and whether one alone was given.

    Args:
        given: an array of one or of several images ([h, w], [h, w, c], [n, h, w, c]; c is 1 or 3,
            in RGB order; uint8, or floats in 0-1, which are rounded to 256 steps), an image of
            Pillow's, a path, or several of these in a list.

    Raises:
        DataError: it is none of these; the message says what came and what to do.

    >>> images, alone = read_images(np.zeros((2, 4, 6, 3), np.float32))
    >>> len(images), images[0].shape, images[0].dtype, alone
    (2, (4, 6, 3), dtype('uint8'), False)
    >>> read_images(np.zeros((3, 40, 60), np.uint8))
    Traceback (most recent call last):
    vadapt.errors.DataError: an array [3, 40, 60] has its channels first; expected [h, w, 3] or \
[n, h, w, 3]: give np.moveaxis(image, -3, -1)
    """
    if isinstance(given, str | os.PathLike):
        return [_read_file(Path(given))], True
    if isinstance(given, Image.Image):
        return [to_channels(from_pillow(given), 3)], True
    if hasattr(given, "__array__"):
        array = _eight_bit(np.asarray(given))
        if array.ndim == 4:
            return [_one(image, array.shape) for image in array], False
        return [_one(array, array.shape)], True
    if isinstance(given, Iterable) and not isinstance(given, bytes | dict):
        images = []
        for number, one in enumerate(given):
            found, alone = read_images(_not_a_number(one))
            if not alone:
                raise DataError(
                    f"element {number} of the list is a batch itself ({_shape(np.shape(one))}); "
                    "give a list of single images, or the batch alone"
                )
            images += found
        return images, False
    raise DataError(
        f"an image is an array, an image of Pillow's or a path; got a {type(given).__name__}"
    )


def _not_a_number(one: Any) -> Any:
    if isinstance(one, int | float | list | tuple):
        raise DataError(
            f"a list is of images, and this one holds a {type(one).__name__}; numbers are given as "
            "an array: np.asarray(image, np.uint8)"
        )
    return one


def _read_file(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    path = path.expanduser()
    if path.is_dir():
        raise DataError(
            f"{str(path)!r} is a folder; give its files, as in sorted(Path(folder).glob('*.png')), "
            "or use the command: python -m vadapt.predict --images=FOLDER"
        )
    try:
        return decode_image(path.read_bytes(), 3)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read {str(path)!r}: {error}") from error


def _one(array: UInt8[np.ndarray, "..."], given: tuple[int, ...]) -> UInt8[np.ndarray, "h w 3"]:
    """A single image of three channels, out of an array of shape `given`."""
    if array.ndim == 2:
        array = array[..., None]
    shown, expected = f"an array {_shape(given)}", _EXPECTED
    if array.ndim != 3:
        raise DataError(f"{shown} has {len(given)} axes; {expected}")
    if not array.size:
        raise DataError(f"{shown} holds no pixel; {expected}")
    if array.shape[-1] in _CHANNELS:
        return to_channels(np.ascontiguousarray(array), 3)
    if array.shape[0] in _CHANNELS:
        raise DataError(
            f"{shown} has its channels first; {expected}: give np.moveaxis(image, -3, -1)"
        )
    if array.shape[-1] == 4:
        raise DataError(
            f"{shown} has four channels; {expected}: if the last is alpha, give image[..., :3]"
        )
    raise DataError(
        f"{shown} has {array.shape[-1]} channels; {expected}; gray images in a batch are "
        "[n, h, w, 1]: give images[..., None]"
    )


def _eight_bit(array: np.ndarray) -> UInt8[np.ndarray, "..."]:
    if array.dtype == np.uint8:
        return array
    kind = f"an array of {array.dtype}"
    if not array.size:
        return array.astype(np.uint8)
    # bfloat16 is of no kind that NumPy knows.
    if not (array.dtype.kind == "f" or array.dtype.name.startswith(("bfloat", "float"))):
        values = f" with values {array.min()} to {array.max()}" if array.dtype.kind in "iu" else ""
        raise DataError(
            f"{kind}{values}; expected uint8, or floats in 0-1: give image.astype(np.uint8) if the "
            "values are 0-255, or image / the largest value that there can be"
        )
    values = array.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{kind} with values that are not finite; expected 0-1")
    if low < 0:
        raise DataError(
            f"{kind} with values {low:.4g} to {high:.4g}; expected 0-1: give the image as it was "
            "before its mean was subtracted, which happens here"
        )
    if high > 1:
        raise DataError(
            f"{kind} with values {low:.4g} to {high:.4g}; expected 0-1: give image / 255 if the "
            "values are 0-255, or uint8"
        )
    return np.rint(values * 255).astype(np.uint8)


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
