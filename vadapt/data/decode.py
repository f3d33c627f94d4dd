"""From the bytes of an image file to uint8, whatever its bit depth, mode and orientation."""

from __future__ import annotations

import io
import sys

import numpy as np
from jaxtyping import Integer, Num, UInt8
from PIL import Image, ImageFile, UnidentifiedImageError

# Named, so that a stray file never reaches Pillow's readers of PostScript and the like.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "GIF", "PPM")

_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_WIDE_COLOUR = ("RGB;16", "RGBX;16", "RGBA;16")
_SPREAD = {"L;2": 85, "L;4": 17}  # what Pillow multiplies grey of few bits by
_ORIENTATION_TAG = 0x0112
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, channels: int = 3) -> UInt8[np.ndarray, "h w {channels}"]:
    """Decodes an image file in full, turned upright by its EXIF orientation.

    8-bit values are kept as they are. Images of more bits (16-bit, 32-bit integer, float) are
    stretched linearly from their own minimum and maximum to 0..255: a thermal camera fills a small
    part of its 16 bits, and a division by 256 would leave black. A flat one gives zeros, and so do
    values that are not finite. Palettes are looked up, alpha is dropped, of several frames the
    first is taken.

    Args:
        data: the whole file.
        channels: 3 repeats grey in three channels; 1 turns colour into luma (ITU-R 601).

    Raises:
        ValueError: `data` is empty or no image.
        OSError: the image is truncated or damaged.
        PIL.Image.DecompressionBombError: it claims more than 179 million pixels.
    """
    if not data:
        raise ValueError("the file is empty")
    with _open(data) as image:
        tiles = list(image.tile)
        rawmodes = {_rawmode(tile.args) for tile in tiles}
        image.load()
        if image.mode in _WIDE_MODES:
            pixels = stretch(np.asarray(_upright(image)))
        elif len(rawmodes) == 1 and (low := _low_rawmode(rawmodes.pop())):
            pixels = stretch(_wide_colour(data, image, low))
        else:
            pixels = np.asarray(_upright(_eight_bit(image)))
    return to_channels(pixels.reshape(*pixels.shape[:2], -1), channels)


def decode_mask(data: bytes) -> Integer[np.ndarray, "h w *c"]:
    """The values of a mask file as they stand in it, of 1 to 32 bits; alpha is dropped.

    Returns:
        Ids [h, w], of a file with a palette the indices into it; or colours [h, w, 3].

    Raises:
        ValueError: no image, a JPEG (whose losses make ids of their own), or one of floats.
        OSError: the image is truncated or damaged.
    """
    with _open(data) as image:
        rawmodes = {_rawmode(tile.args) for tile in image.tile}
        if image.format == "JPEG" or image.mode == "F":
            raise ValueError(f"a mask as {image.format} of mode {image.mode}; save it as PNG")
        image.load()
        rawmode = rawmodes.pop() if len(rawmodes) == 1 else ""
        if low := _low_rawmode(rawmode):
            pixels = _wide_colour(data, image, low)
        elif image.mode == "1":
            pixels = np.asarray(_upright(image)).astype(np.uint8)
        else:
            pixels = np.asarray(_upright(image)) // _SPREAD.get(rawmode, 1)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]


def to_channels(
    image: UInt8[np.ndarray, "h w c"], channels: int
) -> UInt8[np.ndarray, "h w {channels}"]:
    """Repeats one channel in three, or turns three into luma (ITU-R 601, as Pillow rounds)."""
    if image.shape[-1] == channels:
        return image
    if image.shape[-1] == 1 and channels == 3:
        return np.broadcast_to(image, (*image.shape[:2], 3))  # a view: no copy of it until resized
    if image.shape[-1] == 3 and channels == 1:
        return np.asarray(Image.fromarray(image).convert("L"))[..., None]
    raise ValueError(f"cannot turn {image.shape[-1]} channels into {channels}; both must be 1 or 3")


def stretch(values: Num[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Maps the range of the finite values linearly onto 0..255; all zero if there is no range."""
    # float32 holds every 16-bit integer; wider ones need float64.
    values = values.astype(np.float32 if values.itemsize <= 2 else np.float64)
    finite = np.isfinite(values)
    low = values.min(where=finite, initial=np.inf)
    high = values.max(where=finite, initial=-np.inf)
    if not low < high:
        return np.zeros(values.shape, np.uint8)
    values = np.where(finite, values, low)
    return np.rint((values - low) * (255 / (high - low))).astype(np.uint8)


def _open(data: bytes) -> ImageFile.ImageFile:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError("no image of a known format") from None


def _rawmode(args: object) -> str:
    """The layout of a tile's pixels in the file; Pillow gives it alone or first of several."""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _low_rawmode(rawmode: str) -> str:
    """The layout that reads the low bytes of 16-bit colour; empty if the layout is another.

    Pillow has no mode for such colour: it keeps the high byte of each value. Naming the other
    byte order makes it keep the low byte, and both together are the value.
    """
    if rawmode == "LA;16B":
        return "RGBA"  # four bytes a pixel, kept as they are
    stem, order = rawmode[:-1], rawmode[-1:]
    if stem not in _WIDE_COLOUR:
        return ""
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    return stem + {"L": "B", "B": "L"}[order]


def _wide_colour(data: bytes, high: Image.Image, low_rawmode: str) -> Num[np.ndarray, "h w c"]:
    """The 16-bit values of a colour image (or of grey with alpha), without alpha."""
    with _open(data) as low:
        low.tile = [
            tile._replace(
                args=(low_rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else low_rawmode
            )
            for tile in low.tile
        ]
        low.load()
        low_bytes = np.asarray(_upright(low)).astype(np.uint16)
    if low_rawmode == "RGBA":
        return (low_bytes[..., 0] << 8 | low_bytes[..., 1])[..., None]
    high_bytes = np.asarray(_upright(high)).astype(np.uint16)
    return (high_bytes << 8 | low_bytes)[..., :3]


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB."""
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("1", "LA", "La"):
        return image.convert("L")
    if image.mode == "P":
        # By way of RGBA: a palette with alpha warns when converted straight to RGB.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """Turns a loaded image as its EXIF orientation says; damaged EXIF is no reason to lose it."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        orientation = 1
    transpose = _TRANSPOSES.get(orientation)
    return image if transpose is None else image.transpose(transpose)
