"""From the bytes of an image file to uint8, whatever its bit depth, mode and orientation."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import Integer, Num, Shaped, UInt8
from PIL import Image, ImageFile, UnidentifiedImageError

from vadapt.errors import UnreadableError, VadaptError

# Pillow warns from half of the size on that it refuses; what is no bomb is read in silence.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Named, so that a stray file never reaches Pillow's readers of PostScript and the like.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "GIF", "PPM")

_WIDE_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_WIDE_COLOUR = ("RGB;16", "RGBX;16", "RGBA;16")
_GREY = re.compile(r"(?:1|L);(?P<bits>[24]?)(?P<inverted>I?)R?")  # a file's own layouts of it
_SPREAD = {"": 1, "2": 85, "4": 17}  # what Pillow multiplies grey of few bits by
_LOSSY = ("jpeg", "tiff_jpeg", "webp")  # compressions of TIFF that make ids of their own
_PHOTOMETRIC_TAG, _WHITE_IS_ZERO = 262, 0
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
_ON_ITS_SIDE = (5, 6, 7, 8)


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
        UnreadableError: see `open_image`; or it is damaged.
        OSError: the image is truncated or damaged.
    """
    with _told(), open_image(data) as image:
        tiles = list(image.tile)
        rawmodes = {_rawmode(tile.args) for tile in tiles}
        image.load()
        wide = image.mode not in _WIDE_MODES and len(rawmodes) == 1
        if wide and (low := _low_rawmode(rawmodes.pop())):
            pixels = stretch(_wide_colour(data, image, low))
        else:
            pixels = from_pillow(image)
    return to_channels(pixels, channels)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) that `decode_image` gives of a file, from its head alone.

    Raises:
        OSError: it cannot be read; and what else Pillow raises of damaged files.
    """
    with Image.open(path, formats=FORMATS) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in _ON_ITS_SIDE else (height, width)


def from_pillow(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of an image of Pillow's, by the rules of `decode_image`; c is 1 or 3."""
    if image.mode in _WIDE_MODES:
        pixels = stretch(np.asarray(_upright(image)))
        if _white_is_zero(image):  # which Pillow heeds for 8 bits and fewer alone
            pixels = 255 - pixels
    else:
        pixels = np.asarray(_upright(_eight_bit(image)))
    return pixels.reshape(*pixels.shape[:2], -1)


def decode_mask(data: bytes) -> Integer[np.ndarray, "h w *c"]:
    """The values of a mask file as they stand in it, of 1 to 32 bits; alpha is dropped.

    What the file says of how to show them (that 0 is white, as in most TIFFs of 1 bit) changes
    nothing.

    Returns:
        Ids [h, w], of a file with a palette the indices into it; or colours [h, w, 3].

    Raises:
        UnreadableError: see `open_image`; a mask with the losses of JPEG, which make ids of their
            own, or one of floats, or of a PGM whose values Pillow stretches.
        OSError: the image is truncated or damaged.
    """
    with _told(), open_image(data) as image:
        rawmodes = {_rawmode(tile.args) for tile in image.tile}
        lossy = image.format == "JPEG" or image.info.get("compression") in _LOSSY
        if lossy or image.mode == "F" or _is_stretched(image):
            what = "with losses" if lossy else f"of mode {image.mode}"
            raise UnreadableError(f"a mask as {image.format} {what}; save it as PNG")
        image.load()
        rawmode = rawmodes.pop() if len(rawmodes) == 1 else ""
        if low := _low_rawmode(rawmode):
            pixels = _wide_colour(data, image, low)
        else:
            pixels = _as_stored(np.asarray(_upright(image)), rawmode)
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


def open_image(data: bytes) -> ImageFile.ImageFile:
    """The image of a whole file, as Pillow has it before it is decoded.

    Raises:
        UnreadableError: `data` is empty, no image of `FORMATS`, or its header claims more than 179
            million pixels, for which memory would be taken at once.
    """
    if not data:
        raise UnreadableError("the file is empty")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise UnreadableError("no image of a known format") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableError(
            f"its header claims more pixels than are read ({error}); if it is no damaged file, cut "
            "it into tiles"
        ) from None


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turns what Pillow raises of damaged files, which is of many types, into one."""
    try:
        yield
    except (OSError, MemoryError, VadaptError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UnreadableError(f"the image is damaged ({reason})") from error


def _as_stored(values: Shaped[np.ndarray, "h w *c"], rawmode: str) -> Num[np.ndarray, "h w *c"]:
    """What stands in the file, from what Pillow makes of it to show it."""
    highest = 1 if values.dtype == bool else 255
    values = values.astype(np.uint8) if values.dtype == bool else values
    layout = _GREY.fullmatch(rawmode)
    if layout is None:
        return values
    values = highest - values if layout["inverted"] else values
    return values // _SPREAD[layout["bits"]]


def _is_stretched(image: ImageFile.ImageFile) -> bool:
    """Whether Pillow stretches the values from the file's own greatest one to 255 or 65535."""
    greatest = [
        tile.args[1]
        for tile in image.tile
        if tile.codec_name in ("ppm", "ppm_plain") and isinstance(tile.args, tuple)
    ]
    return any(value not in (255, 65535) for value in greatest)


def _white_is_zero(image: Image.Image) -> bool:
    tags = getattr(image, "tag_v2", {})
    return tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO


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
    with open_image(data) as low:
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


def _orientation(image: Image.Image) -> int:
    """As the EXIF says, 1 for upright; damaged EXIF is no reason to lose an image."""
    try:
        return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1


def _upright(image: Image.Image) -> Image.Image:
    """Turns a loaded image as its EXIF orientation says."""
    transpose = _TRANSPOSES.get(_orientation(image))
    return image if transpose is None else image.transpose(transpose)
