"""Image files of every kind, made here, come out as the uint8 arrays that they should."""

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from vadapt.data.decode import decode_image, decode_mask, stretch, to_channels
from vadapt.errors import UnreadableError

# Raw values of a thermal camera: a narrow band far from 0, black if divided by 256.
THERMAL = np.random.default_rng(0).integers(8000, 8300, (7, 9, 4)).astype(np.uint16)


def encoded(image, file_format, **options):
    """The bytes of a Pillow image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png16(values):
    """A 16-bit PNG of 1 (grey), 2 (grey, alpha), 3 or 4 channels; Pillow writes only the first."""
    height, width, channels = values.shape
    header = struct.pack(">IIBBBBB", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff16(values, order, compressed):
    """A 16-bit RGB TIFF in either byte order, plain or deflated; Pillow writes none."""
    endian = {"II": "<", "MM": ">"}[order]
    height, width, channels = values.shape
    pixels = values.astype(endian + "u2").tobytes()
    pixels = zlib.compress(pixels) if compressed else pixels
    bits_at = 8 + 2 + 12 * 9 + 4
    short, long = 3, 4
    tags = [
        (256, short, 1, width),
        (257, short, 1, height),
        (258, short, channels, bits_at),
        (259, short, 1, 8 if compressed else 1),
        (262, short, 1, 2),
        (273, long, 1, bits_at + 2 * channels),
        (277, short, 1, channels),
        (278, short, 1, height),
        (279, long, 1, len(pixels)),
    ]
    out = order.encode() + struct.pack(endian + "HIH", 42, 8, len(tags))
    for tag, kind, count, value in tags:
        inline = kind == short and count == 1
        out += struct.pack(
            endian + ("HHIHH" if inline else "HHII"), tag, kind, count, value, *[0][:inline]
        )
    return out + struct.pack(endian + f"I{channels}H", 0, *[16] * channels) + pixels


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 3)])
def test_lossless_8_bit_files_come_back_exactly(file_format, shape, rng):
    values = rng.integers(0, 256, shape).astype(np.uint8)
    image = decode_image(
        encoded(Image.fromarray(values), file_format), 3 if values.ndim == 3 else 1
    )
    np.testing.assert_array_equal(image, values.reshape(5, 8, -1))


def test_8_bit_values_are_not_stretched():
    image = decode_image(encoded(Image.new("L", (4, 4), 7), "PNG"), 1)
    assert (image == 7).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_stretched_over_its_own_range(channels):
    values = THERMAL[..., :channels]
    colours = values[..., :3] if channels > 2 else values[..., :1]
    image = decode_image(png16(values), colours.shape[-1])
    np.testing.assert_array_equal(image, stretch(colours))
    assert (image.min(), image.max()) == (0, 255)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["II", "MM"])
def test_16_bit_colour_tiff_is_stretched_over_its_own_range(order, compressed):
    values = THERMAL[..., :3]
    np.testing.assert_array_equal(decode_image(tiff16(values, order, compressed)), stretch(values))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_wide_grey_tiff_is_stretched_over_its_own_range(dtype):
    values = THERMAL[..., 0].astype(dtype)
    image = decode_image(encoded(Image.fromarray(values), "TIFF"), 1)
    np.testing.assert_array_equal(image[..., 0], stretch(THERMAL[..., 0]))


def test_stretch_maps_linearly_and_survives_flat_and_non_finite_values():
    np.testing.assert_array_equal(stretch(np.array([100, 200, 150], np.uint16)), [0, 255, 128])
    np.testing.assert_array_equal(stretch(np.full(3, 900, np.uint16)), [0, 0, 0])
    np.testing.assert_array_equal(stretch(np.array([np.nan, -1.0, 1.0, np.inf])), [0, 0, 255, 0])


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "1", "CMYK", "L", "RGB", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_gives_the_channels_asked_for(mode, channels):
    file_format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    white = Image.fromarray(np.full((6, 4), 255, np.uint8)).convert("RGB").convert(mode)
    image = decode_image(encoded(white, file_format), channels)
    assert image.shape == (6, 4, channels)
    assert (image > 250).all()  # white stays white, also through CMYK, which JPEG stores inverted


def test_palette_with_transparency_keeps_its_colours():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    data = encoded(image, "PNG", transparency=bytes([0, 255]))
    np.testing.assert_array_equal(decode_image(data), np.full((4, 4, 3), (200, 100, 50)))


def test_colour_becomes_luma_and_grey_is_repeated():
    red = np.zeros((2, 2, 3), np.uint8)
    red[..., 0] = 255
    assert (to_channels(red, 1) == 76).all()  # 0.299 * 255
    assert (to_channels(to_channels(red, 1), 3) == 76).all()
    with pytest.raises(ValueError, match="3 channels into 2"):
        to_channels(red, 2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "JPEG"])
def test_exif_orientation_turns_the_image_upright(orientation, file_format):
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :8] = 255  # one bright corner: top left
    stored = Image.fromarray(upright)
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Transpose that undoes each orientation
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(encoded(stored, file_format, exif=exif), 1)[..., 0]
    assert image.shape == (16, 32)
    assert image[:8, :8].min() > 200
    assert image[:, 16:].max() < 50


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "TIFF"])
def test_truncated_files_are_errors(file_format, rng):
    image = Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8))
    data = encoded(image, file_format)
    with pytest.raises((OSError, ValueError, SyntaxError)):
        decode_image(data[: len(data) // 2])


def test_empty_and_foreign_files_are_errors():
    with pytest.raises(ValueError, match="empty"):
        decode_image(b"")
    with pytest.raises(ValueError, match="no image"):
        decode_image(b"this is a text file, whatever its name says")


def test_an_image_of_absurd_size_is_an_error():
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header
    data = start + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    for decode in (decode_image, decode_mask):
        with pytest.raises(UnreadableError, match=r"claims more pixels .*10000000000 pixels"):
            decode(data)


def few_bits(values, depth):
    """A grey PNG of fewer than 8 bits a pixel; Pillow writes none."""
    height, width = values.shape
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., -depth:]
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits.reshape(height, -1), axis=1))

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_masks_of_few_bits_keep_their_ids(depth):
    values = np.arange(24).reshape(4, 6) % 2**depth
    np.testing.assert_array_equal(decode_mask(few_bits(values, depth)), values)


@pytest.mark.parametrize("mode", ["L", "P", "LA", "I", "I;16"])
def test_masks_give_what_stands_in_the_file(mode):
    values = np.arange(24, dtype=np.uint8).reshape(4, 6)
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette(list(range(255, -1, -1)) * 3)
    elif mode == "LA":
        image = Image.merge("LA", [image, Image.new("L", image.size, 9)])
    elif mode != "L":
        wide = values.astype(np.int32 if mode == "I" else np.uint16) + 900
        image, values = Image.fromarray(wide), wide
    file_format = "TIFF" if mode == "I" else "PNG"
    np.testing.assert_array_equal(decode_mask(encoded(image, file_format)), values)


def test_colour_masks_give_colours_of_8_or_16_bits(rng):
    colours = rng.integers(0, 256, (4, 6, 4)).astype(np.uint8)
    found = decode_mask(encoded(Image.fromarray(colours), "PNG"))
    np.testing.assert_array_equal(found, colours[..., :3])
    np.testing.assert_array_equal(decode_mask(png16(THERMAL[..., :3])), THERMAL[..., :3])


def grey_tiff(rows, bits, photometric, fill_order=1):
    """A TIFF of one strip whose stored values are `rows`, whatever is black."""
    height, width = rows.shape
    if bits == 16:
        data = rows.astype("<u2").tobytes()
    else:
        places = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., -bits:]
        packed = np.packbits(places.reshape(height, -1), axis=1)
        if fill_order == 2:  # the lowest bit first
            packed = np.packbits(np.unpackbits(packed[..., None], axis=-1)[..., ::-1], axis=-1)
        data = packed.tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 266: fill_order}
    tags |= {273: 8, 277: 1, 278: height, 279: len(data)}
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + table + struct.pack("<I", 0)


@pytest.mark.parametrize("photometric", [0, 1])  # white is zero, black is zero
@pytest.mark.parametrize(("bits", "fill_order"), [(1, 1), (1, 2), (4, 1), (4, 2), (8, 1), (16, 1)])
def test_masks_in_tiff_keep_their_ids_whatever_is_white(photometric, bits, fill_order):
    values = np.arange(24).reshape(3, 8) % 2**bits
    data = grey_tiff(values, bits, photometric, fill_order)
    np.testing.assert_array_equal(decode_mask(data), values)


def test_compressed_masks_of_inverted_tiff_keep_their_ids():
    values = np.arange(24).reshape(3, 8) % 3 == 0
    data = encoded(Image.fromarray(values), "TIFF", compression="group4", tiffinfo={262: 0})
    with Image.open(io.BytesIO(data)) as image:
        stored = 1 - np.asarray(image).astype(int) if image.tag_v2[262] == 0 else np.asarray(image)
    np.testing.assert_array_equal(decode_mask(data), stored)


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_images_of_inverted_tiff_are_shown_as_they_are_meant(bits):
    values = np.arange(16).reshape(2, 8) % 2 * (2**bits - 1)
    shown = decode_image(grey_tiff(values, bits, 0), 1)[..., 0]
    np.testing.assert_array_equal(shown, np.where(values, 0, 255))


@pytest.mark.parametrize("data", [b"P4\n8 1\n\xa0", b"P1\n8 1\n1 0 1 0 0 0 0 0\n"])
def test_bitmaps_give_their_bits(data):
    np.testing.assert_array_equal(decode_mask(data), [[1, 0, 1, 0, 0, 0, 0, 0]])


def test_what_changes_ids_is_no_mask():
    for data in (
        encoded(Image.new("L", (8, 8)), "JPEG"),
        encoded(Image.new("L", (8, 8)), "TIFF", compression="jpeg"),
        b"P5\n3 1\n20\n\x00\x01\x14",  # Pillow stretches 20 to 255
        b"P2\n2 1\n1000\n1 2\n",
    ):
        with pytest.raises(UnreadableError, match="save it as PNG"):
            decode_mask(data)
    np.testing.assert_array_equal(decode_mask(b"P5\n3 1\n255\n\x00\x01\x14"), [[0, 1, 20]])


def changed_images():
    """Files of every format, cut and changed by a small fuzzer."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 7, 3), np.uint8)
    rgb, wide = Image.fromarray(pixels), Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    exif = Image.Exif()
    exif[0x0112] = 6
    pages = {"save_all": True, "append_images": [rgb.convert("P").rotate(90)]}
    for image, kind, options in (
        (rgb, "PNG", {"icc_profile": b"no profile"}),
        (wide, "PNG", {}),
        (rgb, "JPEG", {"exif": exif}),
        (rgb, "TIFF", {}),
        (rgb.convert("P"), "GIF", pages),
        (rgb, "BMP", {}),
        (wide, "PPM", {}),
    ):
        file = io.BytesIO()
        image.save(file, kind, **options)
        whole = file.getvalue()
        yield whole
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(0, min(len(data), rng.choice([30, 300])), 3):
                data[place] = rng.choice([0, 127, 255, rng.integers(0, 256)])
            yield bytes(data[: rng.choice([len(data), rng.integers(1, len(data))])])


@pytest.mark.parametrize("decode", [decode_image, decode_mask])
def test_a_damaged_image_is_read_or_refused_by_one_kind_of_error(decode):
    refusals = 0
    for data in changed_images():
        try:
            assert decode(data).size > 0
        except (UnreadableError, OSError) as error:
            refusals += "\n" not in str(error)
    assert refusals > 100


def bomb(width, height):
    """A PNG of a few bytes whose header claims so many pixels."""

    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + content


@pytest.mark.parametrize("decode", [decode_image, decode_mask])
@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_a_decompression_bomb_takes_no_memory(decode, side):
    tracemalloc.start()
    with pytest.raises(UnreadableError, match="claims more pixels than are read") as error:
        decode(bomb(side, side))
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_an_image_of_no_pixels_is_refused(width, height):
    with pytest.raises((UnreadableError, OSError)):
        decode_image(bomb(width, height))


def test_of_an_animated_gif_the_first_frame_is_taken():
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert set(decode_image(file.getvalue()).flat) == {10}
