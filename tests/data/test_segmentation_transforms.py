"""Sizes, crops, padding and colours of segmentation records."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadapt.data import resampling
from vadapt.data.photometric import (
    PhotometricDistortion,
    PhotometricDraws,
    distort,
    hsv_to_rgb,
    rgb_to_hsv,
)
from vadapt.data.resampling import cut, resize_nearest, resize_opencv, resize_pillow
from vadapt.data.segmentation_transforms import (
    PadTo,
    RandomCrop,
    RandomShortEdge,
    ResizedCrop,
    ResizeTo,
    ResizeToFit,
    balanced_box,
    fit_size,
)
from vadapt.data.transforms import apply_all
from vadapt.errors import ConfigError

# What OpenCV 5.0 gives: INTER_LINEAR of grey, RGB to HSV, and back with half the saturation.
GREY = [[241, 160, 175, 229, 148], [198, 213, 57, 14, 76], [72, 223, 233, 1, 127],
        [210, 33, 204, 30, 119]]  # fmt: skip
RESIZED = {
    (2, 3): [[208, 116, 115], [136, 219, 87]],
    (5, 7): [
        [241, 194, 164, 175, 213, 194, 148],
        [211, 203, 167, 92, 82, 86, 97],
        [135, 182, 197, 145, 47, 48, 102],
        [113, 143, 183, 224, 71, 59, 124],
        [210, 109, 82, 204, 79, 68, 119],
    ],
}
RGB = [[90, 90, 90], [252, 45, 81], [164, 201, 163], [222, 12, 100],
       [146, 112, 99], [10, 200, 10], [138, 122, 245], [61, 217, 65]]  # fmt: skip
HSV = [[0, 0, 90], [175, 209, 252], [59, 48, 201], [167, 241, 222],
       [8, 82, 146], [60, 242, 200], [124, 128, 245], [61, 183, 217]]  # fmt: skip
PALER = [[90, 90, 90], [252, 149, 166], [183, 201, 182], [222, 118, 163],
         [146, 129, 123], [105, 200, 105], [192, 184, 245], [140, 217, 142]]  # fmt: skip


def pixels(values):
    return np.array(values, np.uint8)[None]


def record_of(height, width, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (height, width, 3)).astype(np.uint8),
        "mask": rng.integers(0, 4, (height, width)).astype(np.uint8),
    }


@pytest.mark.parametrize("size", RESIZED)
def test_bilinear_is_opencvs_to_the_bit(size):
    found = resize_opencv(np.array(GREY, np.uint8)[..., None], size)
    np.testing.assert_array_equal(found[..., 0], RESIZED[size])


def bilinear(image, size):
    """OpenCV's rule in one go over the whole image."""
    at = [
        ((np.arange(new) + 0.5) * (old / new) - 0.5).astype(np.float32)
        for old, new in zip(image.shape, size, strict=False)
    ]
    (top, bottom), (left, right) = (
        [(np.floor(x) + step).clip(0, old - 1).astype(int) for step in (0, 1)]
        for x, old in zip(at, image.shape, strict=False)
    )
    (above, below), (before, behind) = (
        [np.rint(share * np.float32(2048)).astype(int) for share in (1 - (x % 1), x % 1)]
        for x in at
    )
    wide = image.astype(int)
    rows = wide[:, left] * before[:, None] + wide[:, right] * behind[:, None] >> 4
    upper, lower = (
        rows[place] * weight[:, None, None] >> 16
        for place, weight in ((top, above), (bottom, below))
    )
    return (upper + lower + 2 >> 2).astype(np.uint8)


def framed(data, size):
    """A random box in an image of this size."""
    height, width = (data.draw(st.integers(1, side)) for side in size)
    top, left = (
        data.draw(st.integers(0, a - b)) for a, b in zip(size, (height, width), strict=True)
    )
    return top, left, height, width


sides = st.one_of(st.integers(1, 12), st.integers(1, 300))


@settings(max_examples=80, deadline=None)
@given(
    old=st.tuples(sides, sides),
    new=st.tuples(sides, sides),
    channels=st.sampled_from([1, 3, 4]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_a_part_is_resized_as_the_whole_is(old, new, channels, seed, data):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*old, channels), np.uint8)
    if seed % 3 == 0:
        image = image // 128 * 255  # the ends of the range
    box, whole = framed(data, new), bilinear(image, new)
    np.testing.assert_array_equal(resize_opencv(image, new), whole)
    np.testing.assert_array_equal(resize_opencv(image, new, box=box), cut(whole, box))
    mirrored = image[:, ::-1]  # no contiguous memory
    np.testing.assert_array_equal(resize_opencv(mirrored, new), bilinear(mirrored, new))
    grey = np.broadcast_to(image[..., :1], (*old, 3))
    expected = cut(bilinear(grey, new), box)
    np.testing.assert_array_equal(resize_opencv(grey, new, box=box), expected)
    mask = image[..., 0]
    centers = [((np.arange(b) + 0.5) * (a / b)).astype(int) for a, b in zip(old, new, strict=True)]
    labels = mask[np.ix_(*centers)]
    np.testing.assert_array_equal(resize_nearest(mask, new), labels)
    np.testing.assert_array_equal(resize_nearest(mask, new, box=box), cut(labels, box))
    with_pillow = resize_pillow(image, new)
    np.testing.assert_array_equal(resize_pillow(image, new, box=box), cut(with_pillow, box))


def test_large_images_are_resized_in_blocks_as_in_one_go(rng):
    image = rng.integers(0, 256, (300, 500, 3), np.uint8)
    for size in ((611, 1013), (150, 250), (97, 900), (900, 80)):
        assert size[0] * size[1] * 3 > resampling._BLOCK / 2
        found = resampling._resize_part(image, size)
        np.testing.assert_array_equal(found, bilinear(image, size))


@settings(max_examples=50, deadline=None)
@given(
    old=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    new=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    value=st.integers(0, 255),
)
def test_a_flat_image_stays_flat_at_any_size(old, new, value):
    found = resize_opencv(np.full((*old, 3), value, np.uint8), new)
    # Both products are cut to whole numbers, in OpenCV too.
    assert np.abs(found.astype(int) - value).max() <= 1


def test_hue_saturation_value_are_opencvs():
    np.testing.assert_array_equal(rgb_to_hsv(pixels(RGB))[0], HSV)
    hsv = rgb_to_hsv(pixels(RGB))
    hsv[..., 1] //= 2
    np.testing.assert_array_equal(hsv_to_rgb(hsv)[0], PALER)


def test_colours_survive_the_way_through_hsv(rng):
    image = rng.integers(0, 256, (50, 60, 3)).astype(np.uint8)
    back = hsv_to_rgb(rgb_to_hsv(image))
    # Steps of two degrees: up to a quarter of a step of 4.25 grey levels, twice, and rounding.
    assert np.abs(back.astype(int) - image).max() <= 5


def test_no_draw_leaves_the_image_and_contrast_has_two_places(rng):
    image = rng.integers(0, 256, (8, 9, 3)).astype(np.uint8)
    assert distort(image, PhotometricDraws()) is image
    first, last = (
        distort(image, PhotometricDraws(None, 1.5, contrast_last, 1.3, 5))
        for contrast_last in (False, True)
    )
    assert (first != last).any()
    brighter = distort(image, PhotometricDraws(brightness=-20.5))
    np.testing.assert_array_equal(brighter, np.maximum(image - 20.5, 0).astype(np.uint8))


def test_grey_images_have_no_hue(rng):
    grey = rng.integers(0, 256, (8, 9, 1)).astype(np.uint8)
    draws = PhotometricDraws(10.0, 0.7, False, 1.5, 9)
    once = distort(grey, draws)
    thrice = distort(np.broadcast_to(grey, (8, 9, 3)), draws)
    np.testing.assert_array_equal(np.broadcast_to(once, (8, 9, 3)), thrice)


def test_draws_depend_on_the_generator_alone_and_stay_in_range():
    transform = PhotometricDistortion()
    draws = [transform.draw(np.random.default_rng(seed)) for seed in range(400)]
    assert draws[3] == transform.draw(np.random.default_rng(3))
    for field, low, high in (("brightness", -32, 32), ("contrast", 0.5, 1.5), ("hue", -18, 17)):
        values = [value for draw in draws if (value := getattr(draw, field)) is not None]
        assert 150 < len(values) < 250
        assert low <= min(values) < max(values) <= high
    record = record_of(5, 6)
    assert transform(record, np.random.default_rng(1))["mask"] is record["mask"]


def test_short_edges_are_drawn_from_the_list_and_the_mask_follows(rng):
    transform = RandomShortEdge((10, 20), longest=35)
    shapes = {transform(record_of(30, 60), rng)["image"].shape[:2] for _ in range(20)}
    assert shapes == {(10, 20), (18, 35)}
    resized = transform(record_of(30, 60), rng)
    assert resized["mask"].shape == resized["image"].shape[:2]
    with pytest.raises(ConfigError):
        RandomShortEdge((), 10)


def test_fitting_keeps_the_aspect_and_may_leave_the_mask(rng):
    assert fit_size(1024, 2048, 1024, 512) == (512, 1024)
    assert fit_size(480, 640, 2048, 512) == (512, 683)
    kept = ResizeToFit(40, 20, masks=False)(record_of(30, 40), rng)
    assert kept["image"].shape[:2] == (20, 27)
    assert kept["mask"].shape == (30, 40)
    for _ in range(10):
        height, _ = ResizeToFit(40, 20, (0.5, 2.0))(record_of(30, 40), rng)["mask"].shape
        assert 10 <= height <= 40
    with pytest.raises(ConfigError):
        ResizeToFit(10, 20)


def test_whole_images_are_resized_whatever_their_aspect(rng):
    record = {"image": rng.integers(0, 256, (4, 10, 3), np.uint8), "mask": np.eye(4, 10) > 0}
    resized = ResizeTo((6, 6))(record, rng)
    np.testing.assert_array_equal(resized["image"], resize_opencv(record["image"], (6, 6)))
    assert resized["mask"].shape == (6, 6)
    with pytest.raises(ConfigError, match="in pixels"):
        ResizeTo((0, 6))


def test_crops_have_several_classes_where_they_can(rng):
    mask = np.zeros((40, 40), np.uint8)
    mask[:, 20:] = 3
    mask[:5] = 255
    record = {"image": record_of(40, 40)["image"], "mask": mask}
    shares = []
    for _ in range(50):
        cut = RandomCrop((12, 12), attempts=100)(record, rng)
        assert cut["image"].shape == (12, 12, 3)
        counted = cut["mask"][cut["mask"] != 255]
        shares.append(np.bincount(counted).max() / counted.size)
    assert max(shares) < 0.75


def test_the_last_crop_is_kept_whatever_it_holds():
    def chosen(mask, boxes):
        return balanced_box(functools.partial(cut, mask), boxes, 0.75)

    one_class = np.full((9, 9), 2, np.uint8)
    boxes = [(0, 1, 3, 3), (2, 3, 3, 3), (4, 5, 3, 3)]
    assert chosen(one_class, boxes) == (4, 5, 3, 3)
    ignored = np.full((9, 9), 255, np.uint8)
    assert chosen(ignored, boxes[:1]) == (0, 1, 3, 3)
    halves = np.indices((9, 9))[0].astype(np.uint8) % 2
    drawn = iter([(0, 1, 4, 4), (2, 3, 4, 4)])
    chosen(halves, drawn)
    assert next(drawn) == (2, 3, 4, 4)  # not drawn, since the first was good


def test_images_smaller_than_the_crop_are_padded_after_it(rng):
    record = apply_all([RandomCrop((8, 8)), PadTo((8, 8))], record_of(5, 20), rng)
    assert record["image"].shape == (8, 8, 3)
    assert record["size"].tolist() == [5, 8]
    assert (record["image"][5:] == (124, 116, 104)).all()
    assert (record["mask"][5:] == 255).all()
    assert (record["mask"][:5] < 4).all()
    whole = PadTo((8, 8))(record_of(8, 8), rng)
    assert whole["size"].tolist() == [8, 8]
    with pytest.raises(ConfigError, match="crop it before"):
        PadTo((4, 8))(record_of(8, 8), rng)
    with pytest.raises(ConfigError):
        RandomCrop((0, 4))
    with pytest.raises(ConfigError, match="leaves the masks"):
        ResizedCrop(ResizeToFit(20, 10, masks=False), RandomCrop((8, 8)))
