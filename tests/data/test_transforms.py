"""Crops, flips and sizes: their geometry, their ranges, and what they leave alone."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vadapt.data.resampling import resize_nearest, resize_pillow
from vadapt.data.transforms import (
    Channels,
    HorizontalFlip,
    RandomResizedCrop,
    Resize,
    ResizeCenterCrop,
    ResizeRandomCrop,
    apply_all,
    crop_and_resize,
    random_resized_crop_box,
)
from vadapt.errors import ConfigError

sides = st.integers(1, 300)
areas = st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(lambda pair: tuple(sorted(pair)))
aspects = st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(lambda pair: tuple(sorted(pair)))
seeds = st.integers(0, 2**32 - 1)


def picture(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)


@settings(max_examples=200, deadline=None)
@given(height=sides, width=sides, area=areas, aspect=aspects, seed=seeds)
def test_crop_box_is_always_inside_the_image(height, width, area, aspect, seed):
    rng = np.random.default_rng(seed)
    top, left, box_height, box_width = random_resized_crop_box(height, width, rng, area, aspect)
    assert 0 <= top <= top + box_height <= height
    assert 0 <= left <= left + box_width <= width
    assert min(box_height, box_width) >= 1


@settings(max_examples=200, deadline=None)
@given(height=st.integers(64, 300), width=st.integers(64, 300), area=areas, seed=seeds)
def test_crop_box_has_area_and_aspect_in_range_when_it_fits(height, width, area, seed):
    # A square at most as large as the shorter side always fits: no fallback can occur.
    area = tuple(share * min(height, width) / max(height, width) * 0.7 for share in area)
    rng = np.random.default_rng(seed)
    _, _, box_height, box_width = random_resized_crop_box(height, width, rng, area, (3 / 4, 4 / 3))
    # Sides are rounded to whole pixels, half a pixel either way.
    low = (box_height - 0.5) * (box_width - 0.5) / (height * width)
    high = (box_height + 0.5) * (box_width + 0.5) / (height * width)
    assert low <= area[1]
    assert high >= area[0]
    assert (box_width - 0.5) / (box_height + 0.5) <= 4 / 3
    assert (box_width + 0.5) / (box_height - 0.5) >= 3 / 4


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (100, 1000, (0, 433, 100, 133)),  # too wide: aspect 4/3 at full height
        (1000, 100, (433, 0, 133, 100)),  # too tall: aspect 3/4 at full width
        (100, 110, (0, 0, 100, 110)),  # the whole image has an aspect in range
    ],
)
def test_without_a_fit_the_crop_is_the_largest_centred_one_in_range(height, width, expected, rng):
    assert random_resized_crop_box(height, width, rng, attempts=0) == expected


def test_crop_box_reaches_every_place_and_both_ends_of_the_ranges():
    rng = np.random.default_rng(0)
    boxes = np.array([random_resized_crop_box(100, 100, rng) for _ in range(3000)])
    top, left, height, width = boxes.T
    share = height * width / 1e4
    assert share.min() < 0.22
    assert share.max() > 0.97
    aspect = width / height
    assert aspect.min() < 0.78
    assert aspect.max() > 1.30
    assert abs(np.log(aspect).mean()) < 0.01  # uniform in the logarithm: no side is favoured
    assert top.min() == left.min() == 0
    assert (top + height).max() == (left + width).max() == 100


@settings(max_examples=40, deadline=None)
@given(height=st.integers(2, 60), width=st.integers(2, 60), seed=seeds)
def test_random_resized_crop_is_the_crop_then_bicubic_resize(height, width, seed):
    image = picture(height, width)
    out = RandomResizedCrop((8, 12))({"image": image}, np.random.default_rng(seed))["image"]
    top, left, box_height, box_width = random_resized_crop_box(
        height, width, np.random.default_rng(seed)
    )
    cut = Image.fromarray(image).crop((left, top, left + box_width, top + box_height))
    np.testing.assert_array_equal(out, np.asarray(cut.resize((12, 8), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_keeps_the_channels_and_averages_when_it_shrinks(channels):
    checker = np.indices((64, 64)).sum(0) % 2 * 255
    image = np.repeat(checker[..., None], channels, -1).astype(np.uint8)
    small = resize_pillow(image, (8, 8))
    assert small.shape == (8, 8, channels)
    # Without antialiasing a checkerboard would come out black and white.
    assert np.abs(small.astype(int) - 127).max() <= 2


@pytest.mark.parametrize("size", [(3, 5), (16, 9), (8, 8)])
def test_nearest_resize_agrees_with_pillow(size):
    mask = picture(8, 8, 1)[..., 0]
    expected = np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST))
    np.testing.assert_array_equal(resize_nearest(mask, size), expected)


@pytest.mark.parametrize(
    "transform",
    [
        RandomResizedCrop((16, 16)),
        HorizontalFlip(1.0),
        Resize((16, 20)),
        ResizeCenterCrop((16, 16), 0.8),
    ],
)
def test_mask_moves_with_the_image(transform, rng):
    # Left half 0, right half 200, in both: they must agree away from the seam.
    mask = np.zeros((40, 60), np.int32)
    mask[:, 30:] = 200
    image = np.repeat(mask[..., None], 3, -1).astype(np.uint8)
    out = transform({"image": image, "mask": mask, "label": 3}, rng)
    assert out["mask"].shape == out["image"].shape[:2]
    assert out["mask"].dtype == np.int32
    assert set(np.unique(out["mask"])) <= {0, 200}
    differing = np.abs(out["image"][..., 0].astype(int) - out["mask"]) > 60
    assert differing.mean() < 0.1
    assert out["label"] == 3


def test_flip_mirrors_with_the_given_probability():
    image = picture(4, 6)
    rng = np.random.default_rng(0)
    outs = [HorizontalFlip(0.3)({"image": image}, rng)["image"] for _ in range(2000)]
    flipped = [np.array_equal(out, image[:, ::-1]) for out in outs]
    unchanged = [np.array_equal(out, image) for out in outs]
    assert all(a != b for a, b in zip(flipped, unchanged, strict=True))
    assert abs(np.mean(flipped) - 0.3) < 0.04  # four standard deviations


@pytest.mark.parametrize(
    ("height", "width"), [(300, 400), (400, 300), (100, 90), (37, 501), (224, 224)]
)
def test_resize_center_crop_cuts_the_middle_of_the_covering_size(height, width, rng):
    out = ResizeCenterCrop((224, 224), 0.875)({"image": picture(height, width)}, rng)["image"]
    shorter = min(height, width)
    covering = (256 * height // shorter, 256 * width // shorter)
    whole = resize_pillow(picture(height, width), covering)
    top, left = round((covering[0] - 224) / 2), round((covering[1] - 224) / 2)
    np.testing.assert_array_equal(out, whole[top : top + 224, left : left + 224])


@pytest.mark.parametrize("size", [(16, 48), (48, 16), (1, 7)])
def test_resize_center_crop_gives_non_square_sizes(size, rng):
    out = ResizeCenterCrop(size)({"image": picture(33, 35)}, rng)
    assert out["image"].shape == (*size, 3)


def test_channels_turns_grey_into_colour_and_back(rng):
    grey = picture(4, 4, 1)
    colour = Channels(3)({"image": grey}, rng)["image"]
    assert colour.shape == (4, 4, 3)
    np.testing.assert_array_equal(Channels(1)({"image": colour}, rng)["image"], grey)


def test_transforms_do_not_write_into_their_input(rng):
    image = picture(20, 30)
    image.flags.writeable = False
    record = {"image": image}
    transforms = [RandomResizedCrop((8, 8)), HorizontalFlip(1.0), Channels(1), Resize((4, 4))]
    assert apply_all(transforms, record, rng)["image"].shape == (4, 4, 1)
    assert record["image"] is image


def test_a_crop_sees_nothing_beyond_its_edge():
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:24, 8:24] = 100
    out = crop_and_resize({"image": image}, (8, 8, 16, 16), (40, 40))["image"]
    assert (out == 100).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Resize((0, 4)), "size is"),
        (lambda: RandomResizedCrop((4, 4), area=(0.5, 0.2)), "area is"),
        (lambda: RandomResizedCrop((4, 4), aspect=(0, 1)), "aspect is"),
        (lambda: HorizontalFlip(1.5), "probability is"),
        (lambda: ResizeCenterCrop((4, 4), 0), "fraction is"),
        (lambda: Channels(2), "channels is"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_log_uniform_aspect_is_used():
    rng = np.random.default_rng(1)
    boxes = [random_resized_crop_box(1000, 1000, rng, (0.1, 0.1), (0.25, 4)) for _ in range(2000)]
    logs = np.log([width / height for _, _, height, width in boxes])
    # Uniform over [-log 4, log 4]: a quarter of the draws in each quarter.
    shares = np.histogram(logs, bins=4, range=(-math.log(4), math.log(4)))[0] / len(logs)
    assert np.abs(shares - 0.25).max() < 0.04


def test_a_random_crop_is_of_the_image_that_a_center_crop_is_of():
    record = {"image": np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)}
    cut = ResizeRandomCrop((28, 28), 0.875)  # of 32 x 44
    places = set()
    for seed in range(40):
        out = cut(record, np.random.default_rng(seed))["image"]
        whole, spare = cut.resized(record)
        assert (out.shape, spare) == ((28, 28, 3), (4, 16))
        windows = np.lib.stride_tricks.sliding_window_view(whole["image"], (28, 28, 3))[:, :, 0]
        (place,) = np.argwhere((windows == out).all((2, 3, 4)))
        places.add(tuple(place.tolist()))
    assert {top for top, _ in places} == {0, 1, 2, 3, 4}
    assert {0, 16} <= {left for _, left in places}
