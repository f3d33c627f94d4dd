"""Sheets, boxes and colours, checked pixel by pixel where that is possible."""

import numpy as np
import pytest
from PIL import Image

from vadapt import drawing
from vadapt.errors import ShapeError


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, bool])
def test_to_rgb_takes_every_kind_of_image(shape, dtype):
    rgb = drawing.to_rgb(np.ones(shape, dtype))
    assert rgb.shape == (4, 6, 3)
    assert rgb.dtype == np.uint8
    assert (rgb == (1 if dtype is np.uint8 else 255)).all()


def test_to_rgb_clips_floats():
    np.testing.assert_array_equal(
        drawing.to_rgb(np.array([[-1.0, 0.5, 2.0, np.nan]]))[0, :, 0], [0, 128, 255, 0]
    )


@pytest.mark.parametrize("image", [np.zeros((4, 6, 2)), np.zeros(4), np.zeros((4, 6), np.int64)])
def test_to_rgb_refuses_other_arrays(image):
    with pytest.raises(ShapeError, match="an image of"):
        drawing.to_rgb(image)


def test_boxes_are_drawn_inside_their_bounds():
    image = np.zeros((8, 8, 3), np.uint8)
    drawn = drawing.draw_boxes(image, np.array([[1.0, 2.0, 5.0, 6.0]]), [(255, 0, 0)])
    rows, columns = np.nonzero(drawn[..., 0])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 5, 1, 4)
    assert drawn[3, 2, 0] == 0
    assert not image.any()


def test_boxes_beyond_the_image_are_cut_off():
    boxes = np.array([[-5.0, -5.0, 99.0, 99.0], [20.0, 20.0, 30.0, 30.0]])
    drawn = drawing.draw_boxes(np.zeros((8, 8)), boxes, [(9, 9, 9), (7, 7, 7)])
    assert (drawn[0] == 9).all()
    assert not (drawn == 7).any()


def test_ignored_pixels_are_white():
    palette = np.array([(1, 2, 3), (4, 5, 6)], np.uint8)
    drawn = drawing.colour_mask(np.array([[0, 1, 255]], np.uint8), palette)
    assert drawn.tolist() == [[[1, 2, 3], [4, 5, 6], [255, 255, 255]]]


def test_patches_that_groups_took_from_have_their_colours():
    image = np.full((8, 12, 3), 90, np.uint8)
    drawn = drawing.draw_chosen(image, np.array([[0, 5], [5, 4]]), (2, 3))
    first, second = np.array(drawing.GROUPS[:2])
    patches = drawn[::4, ::4].astype(int)
    np.testing.assert_allclose(patches[0, 0], 45 + first / 2, atol=1)
    np.testing.assert_allclose(patches[1, 1], 45 + second / 2, atol=1)
    np.testing.assert_allclose(patches[1, 2], 45 + (first + second) / 4, atol=1)
    np.testing.assert_array_equal(patches[0, 1:], 36)
    np.testing.assert_array_equal(drawn, drawn[::4, ::4].repeat(4, 0).repeat(4, 1))
    with pytest.raises(ShapeError, match="ids below 6 for a grid of 2x3"):
        drawing.draw_chosen(image, np.array([[6]]), (2, 3))


def test_flow_is_white_at_rest_and_changes_hue_with_direction():
    flow = np.array([[[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]], np.float32)
    drawn = drawing.colour_flow(flow, longest=1.0)
    assert drawn[0, 0].tolist() == [255, 255, 255]
    assert len({tuple(pixel) for pixel in drawn[0].tolist()}) == 4


def test_a_sheet_holds_every_image():
    red, blue = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 4, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = drawing.contact_sheet([[red, blue], [blue]], cell=32)
    assert (sheet == (255, 0, 0)).all(-1).sum() == 32 * 32
    assert (sheet == (0, 0, 255)).all(-1).sum() == 2 * 32 * 16
    assert (sheet[0] == 255).all()


def test_captions_and_legends_take_room():
    image = np.zeros((8, 8))
    plain = drawing.contact_sheet([[image]], cell=64)
    full = drawing.contact_sheet(
        [[image]],
        ["column"],
        ["row"],
        cell=64,
        legend=[(f"class {i}", (9, 9, 9)) for i in range(9)],
    )
    assert full.shape[0] > plain.shape[0]
    assert full.shape[1] > plain.shape[1]


def test_a_sheet_of_nothing_is_refused():
    with pytest.raises(ShapeError, match="no images"):
        drawing.contact_sheet([[]])


def test_png_files_keep_every_pixel(tmp_path, rng):
    image = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    drawing.save_png(tmp_path / "new" / "a.png", image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), image)
