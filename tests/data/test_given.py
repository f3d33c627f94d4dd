"""Images that callers give: what is taken as what, and what is refused with which words."""

import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from vadapt.data.given import read_images
from vadapt.errors import DataError

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "wanted", "alone"),
    [
        (IMAGE, [IMAGE], True),
        (IMAGE[..., 0], [np.repeat(IMAGE[..., :1], 3, -1)], True),
        (IMAGE[..., :1], [np.repeat(IMAGE[..., :1], 3, -1)], True),
        (np.stack([IMAGE, IMAGE]), [IMAGE, IMAGE], False),
        (np.float32(IMAGE) / 255, [IMAGE], True),
        (np.float64(IMAGE)[None] / 255, [IMAGE], False),
        (np.zeros((2, 2, 3), ml_dtypes.bfloat16), [np.zeros((2, 2, 3), np.uint8)], True),
        (Image.fromarray(IMAGE), [IMAGE], True),
        (Image.fromarray(IMAGE[..., 0]), [np.repeat(IMAGE[..., :1], 3, -1)], True),
        (Image.fromarray(IMAGE).convert("RGBA"), [IMAGE], True),
        ([IMAGE, Image.fromarray(IMAGE)], [IMAGE, IMAGE], False),
        ([], [], False),
    ],
)
def test_images_of_every_kind_are_taken(given, wanted, alone):
    images, one = read_images(given)
    assert one == alone
    assert len(images) == len(wanted)
    for image, right in zip(images, wanted, strict=True):
        np.testing.assert_array_equal(image, right)


def test_an_image_of_pillow_is_what_its_file_is(tmp_path):
    wide = Image.fromarray(np.arange(1000, 1030, dtype=np.uint16).reshape(5, 6))
    wide.save(tmp_path / "wide.png")
    turned = Image.fromarray(IMAGE)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    for name in ("wide.png", "turned.png"):
        from_file = read_images(tmp_path / name)[0][0]
        with Image.open(tmp_path / name) as opened:
            np.testing.assert_array_equal(read_images(opened)[0][0], from_file)
    assert read_images(tmp_path / "turned.png")[0][0].shape == (5, 6, 3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.moveaxis(IMAGE, -1, 0), r"\[3, 6, 5\] has its channels first.*moveaxis"),
        (np.moveaxis(IMAGE, -1, 0)[None], r"\[1, 3, 6, 5\] has its channels first"),
        (np.zeros((6, 5, 4), np.uint8), r"four channels.*image\[\.\.\., :3\]"),
        (np.zeros((8, 6, 5), np.uint8), r"5 channels.*images\[\.\.\., None\]"),
        (np.zeros((1, 1, 6, 5, 3), np.uint8), r"5 axes"),
        (np.zeros(5, np.uint8), r"1 axes"),
        (np.zeros((0, 5, 3), np.uint8), "holds no pixel"),
        (np.float32(IMAGE), r"float32 with values .* to 2\d\d; expected 0-1: give image / 255"),
        (np.float32(IMAGE) / 255 - 0.5, "before its mean was subtracted"),
        (np.full((2, 2, 3), np.nan, np.float32), "not finite"),
        (np.int64(IMAGE), r"int64 with values \d+ to \d+.*astype\(np.uint8\)"),
        (np.zeros((2, 2, 3), np.uint16), "an array of uint16 with values 0 to 0"),
        (np.zeros((2, 2, 3), bool), "an array of bool"),
        ([np.stack([IMAGE, IMAGE])], r"element 0 of the list is a batch itself \(\[2, 6, 5, 3\]\)"),
        (IMAGE.tolist(), "this one holds a list.*np.asarray"),
        ([3, 4], "this one holds a int"),
        (None, "got a NoneType"),
        (b"bytes", "got a bytes"),
        ({"image": IMAGE}, "got a dict"),
        ("no/such.png", "cannot read 'no/such.png'"),
    ],
)
def test_what_is_no_image_is_refused_with_what_to_do(given, words):
    with pytest.raises(DataError, match=words):
        read_images(given)


def test_a_folder_and_a_broken_file_are_named(tmp_path):
    with pytest.raises(DataError, match=r"is a folder; give its files"):
        read_images(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cannot read .*a\.png': no image"):
        read_images([tmp_path / "a.png"])
