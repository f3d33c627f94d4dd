"""OpenCV is taken where it gives the same numbers."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from vadapt.data import opencv
from vadapt.data.resampling import _resize_part, cut, resize_opencv


@pytest.fixture
def install(monkeypatch):
    """Install a module of OpenCV's name, or none; sizes that it was asked for are returned."""

    def install(change):
        asked = []

        def resize(image, size, interpolation):
            asked.append((size[1], size[0]))
            return change(_resize_part(image, size[::-1])).squeeze(
                -1 if image.shape[-1] == 1 else ()
            )

        module = SimpleNamespace(resize=resize, INTER_LINEAR=1, __version__="9.9")
        monkeypatch.setitem(sys.modules, "cv2", module if change else None)
        opencv.resize_like.cache_clear()
        return asked

    yield install
    opencv.resize_like.cache_clear()


def images(rng):
    for channels, size in ((3, (31, 40)), (1, (90, 41)), (3, (20, 25)), (4, (9, 9))):
        yield rng.integers(0, 256, (40, 50, channels), np.uint8), size


def test_an_equal_opencv_resizes_what_is_kept_for_the_most_part(install, rng):
    asked = install(lambda image: image)
    assert opencv.resize_like(_resize_part) is not None
    del asked[:]
    for image, size in images(rng):
        np.testing.assert_array_equal(resize_opencv(image, size), _resize_part(image, size))
        box = (1, 2, size[0] - 2, size[1] - 3)
        np.testing.assert_array_equal(
            resize_opencv(image, size, box=box), cut(_resize_part(image, size), box)
        )
    assert asked == [size for size in ((31, 40), (90, 41), (20, 25)) for _ in range(2)]
    resize_opencv(image[..., :3], (40, 60), box=(5, 5, 10, 10))
    assert len(asked) == 6  # for a small part all of it is too much


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image ^ 1,
        lambda image: image ^ (image.shape[:2] == (36, 160)),  # one of its ways alone
        lambda image: image ^ (np.arange(image.shape[1]) > 95)[:, None],  # in wide images
        lambda image: image - (image == 255),
    ],
)
def test_an_opencv_that_differs_anywhere_is_left_aside_aloud(install, change, rng, caplog):
    asked = install(change)
    image = rng.integers(0, 256, (40, 50, 3), np.uint8)
    np.testing.assert_array_equal(resize_opencv(image, (30, 40)), _resize_part(image, (30, 40)))
    resize_opencv(image, (31, 40))
    assert (30, 40) not in asked
    assert [record.getMessage()[:10] for record in caplog.records] == ["OpenCV 9.9"]


def test_without_opencv_nothing_is_said(install, rng, caplog):
    install(None)
    image = rng.integers(0, 256, (40, 50, 3), np.uint8)
    np.testing.assert_array_equal(resize_opencv(image, (30, 40)), _resize_part(image, (30, 40)))
    assert not caplog.records
