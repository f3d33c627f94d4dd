"""Images that JAX traces are resized to the numbers that the data had."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vadapt.data import resampling
from vadapt.data.resampling import resize_opencv, resize_pillow

# Larger, smaller, both, extreme, one axis alone, as it is; Pillow takes rows first in some.
SIZES = [
    ((20, 31), (47, 64)),
    ((90, 70), (31, 32)),
    ((101, 60), (33, 80)),
    ((40, 30), (60, 40)),
    ((3, 200), (50, 5)),
    ((64, 40), (64, 17)),
    ((33, 40), (7, 40)),
    ((32, 48), (32, 48)),
]


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("filter", [resize_pillow, resize_opencv])
def test_a_traced_image_is_resized_alike(filter, old, new):
    images = np.random.default_rng(0).integers(0, 256, (2, *old, 3), np.uint8)
    images[1] = np.where(images[1] < 128, 0, 255)  # the bicubic filter overshoots
    found = jax.jit(jax.vmap(lambda image: filter(image, new)))(jnp.asarray(images))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, [filter(image, new) for image in images])


def test_the_order_of_rows_and_columns_is_pillows():
    image = np.random.default_rng(1).integers(0, 256, (101, 60), np.uint8)

    def resized(*sizes):
        seen = Image.fromarray(image)
        for height, width in sizes:
            seen = seen.resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(seen)

    orders = {
        first: np.array_equal(resized(between, (33, 80)), resized((33, 80)))
        for first, between in ((True, (33, 60)), (False, (101, 80)))
    }
    assert sum(orders.values()) == 1
    assert orders[resampling._rows_first((101, 60), (33, 80))]
