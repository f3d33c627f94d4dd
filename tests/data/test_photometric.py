"""Colors go through HSV by tables and in blocks, to the bit as pixel by pixel in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vadapt.data import photometric
from vadapt.data.photometric import PhotometricDraws, distort, hsv_to_rgb, rgb_to_hsv

maybe = st.none() | st.floats(0.5, 1.5)


def to_hsv(image):
    """OpenCV's rule, of whole numbers alone."""
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    value, low = image.max(-1).astype(int), image.min(-1).astype(int)
    span = value - low
    with np.errstate(divide="ignore"):
        by_value = np.where(value > 0, np.rint((255 << 12) / value), 0).astype(int)
        by_span = np.where(span > 0, np.rint((180 << 12) / (6.0 * span)), 0).astype(int)
    hue = np.where(value == green, blue - red + 2 * span, red - green + 4 * span)
    hue = np.where(value == red, green - blue, hue) * by_span + 2048 >> 12
    return np.stack([hue % 180, span * by_value + 2048 >> 12, value], -1).astype(np.uint8)


def to_rgb(image):
    """The inverse in float32, with the fused products in float64."""
    hue, saturation, value = np.moveaxis(image.astype(np.float32), -1, 0)
    hue, unit = hue * np.float32(6 / 180), np.float32(1 / 255)
    saturation, value = saturation * unit, value * unit
    share = hue % 1
    falling, rising = (
        value * (1 - saturation.astype(np.float64) * part).astype(np.float32)
        for part in (share, 1 - share)
    )
    low = value * (1 - saturation)
    orders = [(value, rising, low), (falling, value, low), (low, value, rising),
              (low, falling, value), (rising, low, value), (value, low, falling)]  # fmt: skip
    sector = np.floor(hue).astype(int) % 6
    channels = [np.choose(sector, [order[number] for order in orders]) for number in range(3)]
    return np.rint(np.stack(channels, -1) * np.float32(255)).astype(np.uint8)


def in_one_go(image, draws):
    """The distortion, a step after the other over the whole image."""

    def linear(values, gain, offset):
        table = np.arange(256, dtype=np.float32) * np.float32(gain) + np.float32(offset)
        return np.clip(table, 0, 255).astype(np.uint8)[values]

    if draws.brightness is not None:
        image = linear(image, 1, draws.brightness)
    if draws.contrast is not None and not draws.contrast_last:
        image = linear(image, draws.contrast, 0)
    if draws.saturation is not None:
        hsv = to_hsv(image)
        hsv[..., 1] = linear(hsv[..., 1], draws.saturation, 0)
        image = to_rgb(hsv)
    if draws.hue is not None:
        hsv = to_hsv(image)
        hsv[..., 0] = (hsv[..., 0].astype(int) + draws.hue) % 180
        image = to_rgb(hsv)
    if draws.contrast is not None and draws.contrast_last:
        image = linear(image, draws.contrast, 0)
    return image


@pytest.mark.parametrize("value", [0, 1, 2, 77, 128, 200, 254, 255])
def test_all_colors_of_a_value_turn_as_one_by_one(value):
    others = np.indices((256, 256)).astype(np.uint8)
    levels = np.full_like(others[0], value)
    hsv = np.stack([*others, levels], -1)
    np.testing.assert_array_equal(hsv_to_rgb(hsv), to_rgb(hsv))
    for number in range(3):
        rgb = np.insert(others, number, levels, 0).transpose(1, 2, 0)
        np.testing.assert_array_equal(rgb_to_hsv(rgb), to_hsv(rgb))


@settings(max_examples=40, deadline=None)
@given(
    draws=st.builds(
        PhotometricDraws,
        brightness=st.none() | st.floats(-32, 32),
        contrast=maybe,
        contrast_last=st.booleans(),
        saturation=maybe,
        hue=st.none() | st.integers(-18, 17),
    ),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_distortion_is_what_one_step_after_the_other_gives(draws, height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, 2 * width, 3), np.uint8)
    np.testing.assert_array_equal(distort(image, draws), in_one_go(image, draws))
    part = image[:, ::-2]  # no contiguous memory
    np.testing.assert_array_equal(distort(part, draws), in_one_go(part, draws))


def test_large_images_are_distorted_in_blocks_as_in_one_go(rng):
    image = rng.integers(0, 256, (211, 317, 3), np.uint8)
    assert image[..., 0].size > 2 * photometric._BLOCK
    draws = PhotometricDraws(7.5, 1.2, True, 0.7, -9)
    np.testing.assert_array_equal(distort(image, draws), in_one_go(image, draws))
