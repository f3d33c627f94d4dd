"""OpenCV in place of slower code, where it is installed and gives the same numbers to the bit."""

from __future__ import annotations

import functools
import importlib
import itertools
import logging
from collections.abc import Callable

import numpy as np

_log = logging.getLogger("vadapt.data")

Resize = Callable[[np.ndarray, tuple[int, int]], np.ndarray]

# Old and new (height, width): whole factors have code of their own, and so have narrow images.
_TRIALS = (
    ((24, 72), (12, 36)), ((12, 36), (24, 72)), ((9, 40), (36, 160)), ((48, 96), (12, 24)),
    ((11, 33), (33, 99)), ((37, 53), (23, 71)), ((30, 41), (61, 29)), ((5, 7), (9, 3)),
    ((1, 200), (4, 151)), ((120, 1), (77, 2)), ((64, 300), (31, 517)), ((20, 20), (20, 33)),
)  # fmt: skip


@functools.cache
def resize_like(exact: Resize) -> Resize | None:
    """OpenCV's bilinear resize, or None where it is missing or differs from `exact` in trials.

    Builds for other processors may round otherwise, and say so nowhere: a run must not change its
    numbers with what is installed. Tried once a process.
    """
    try:
        cv2 = importlib.import_module("cv2")  # no dependency, so type checkers lack it
    except ImportError:
        return None

    def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        image = np.ascontiguousarray(image)
        found = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        return found.reshape(*size, image.shape[-1])

    rng = np.random.default_rng(0)
    for (old, new), channels in itertools.product(_TRIALS, (1, 3)):
        noise = rng.integers(0, 256, (*old, channels), np.uint8)
        for image in (noise, noise // 128 * 255):
            if not np.array_equal(resize(image, new), exact(image, new)):
                _log.warning(
                    "OpenCV %s resizes %s pixels to %s otherwise than vadapt; it is left aside",
                    cv2.__version__,
                    old,
                    new,
                )
                return None
    return resize
