"""OpenCV resizes as vadapt does, to the bit: what `vadapt.data.opencv` finds out in trials."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vadapt.data import opencv
from vadapt.data.photometric import rgb_to_hsv
from vadapt.data.resampling import _resize_part

sides = st.one_of(st.integers(1, 40), st.integers(1, 700))


@settings(max_examples=300, deadline=None)
@given(
    old=st.tuples(sides, sides),
    new=st.tuples(sides, sides),
    factor=st.sampled_from([0, 0, 2, 3, 4]),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_resized_images_are_equal_to_the_bit(old, new, factor, channels, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*old, channels), np.uint8)
    if seed % 3 == 0:
        image = image // 128 * 255
    if factor and seed % 2:
        new = (max(old[0] // factor, 1), max(old[1] // factor, 1))
    elif factor:
        new = (old[0] * factor, old[1] * factor)
    resize = opencv.resize_like(_resize_part)
    assert resize is not None
    mirrored = image[:, ::-1]
    for each in (image, mirrored):
        np.testing.assert_array_equal(resize(each, new), _resize_part(each, new))


def test_hue_saturation_and_value_are_equal_to_the_bit(rng):
    import cv2

    image = rng.integers(0, 256, (301, 403, 3), np.uint8)
    np.testing.assert_array_equal(rgb_to_hsv(image), cv2.cvtColor(image, cv2.COLOR_RGB2HSV))
