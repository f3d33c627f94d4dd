"""Inference on images of any size: whole or in windows, at several scales, mirrored; averaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vadapt.errors import ConfigError
from vadapt.nn.resize import resize_bilinear

# From images to the scores of every class at every pixel of them, [b, h, w, c] to [b, h, w, k].
Score = Callable[[Float[Array, "b h w c"]], Float[Array, "b h w k"]]


def window_starts(size: int, crop: int, stride: int) -> list[int]:
    """Where windows begin along an axis: at multiples of the stride, the last moved back inside.

    >>> window_starts(1024, 512, 341), window_starts(300, 512, 341)
    ([0, 341, 512], [0])
    """
    count = max(size - crop + stride - 1, 0) // stride + 1
    return [max(min(number * stride, size - crop), 0) for number in range(count)]


def slide(
    score: Score,
    images: Float[Array, "b h w c"],
    crop: tuple[int, int],
    stride: tuple[int, int],
    *,
    windows: int = 1,
) -> Float[Array, "b h w k"]:
    """Scores in windows, averaged by how many cover a pixel.

    A window is smaller than the crop where the image is, so that one size of images is one program,
    which holds the model once whatever the number of windows. The scores are summed in float32.

    Args:
        crop: (height, width) of a window in pixels.
        stride: (down, right) from one to the next.
        windows: of each image that are scored at a time; more fill an accelerator better and take
            more memory.

    Source: arXiv:2312.04265 and its code, crop 512 and stride 341 at 512 pixels.
    """
    b, h, w, c = images.shape
    height, width = min(crop[0], h), min(crop[1], w)
    tops, lefts = window_starts(h, height, stride[0]), window_starts(w, width, stride[1])
    places = np.array([(top, left) for top in tops for left in lefts], np.int32)
    windows = min(windows, len(places))
    lacking = -len(places) % windows
    # What fills the last group up scores a place again, and weighs nothing.
    weights = np.r_[np.ones(len(places)), np.zeros(lacking)].astype(np.float32)
    places = np.concatenate([places, np.repeat(places[-1:], lacking, 0)])
    covered = np.outer(_coverage(h, tops, height), _coverage(w, lefts, width))

    def add(sums: Array, group: tuple[Array, Array]) -> tuple[Array, None]:
        corners, shares = group
        tiles = [
            jax.lax.dynamic_slice(images, (0, top, left, 0), (b, height, width, c))
            for top, left in corners
        ]
        # Windows beside their image in the batch: a sharded batch stays where it is.
        batch = jnp.stack(tiles, 1).reshape(b * windows, height, width, c)
        scores = score(batch).astype(jnp.float32).reshape(b, windows, height, width, -1)
        for number, (top, left) in enumerate(corners):
            at, part = (0, top, left, 0), scores[:, number]
            old = jax.lax.dynamic_slice(sums, at, part.shape)
            sums = jax.lax.dynamic_update_slice(sums, old + shares[number] * part, at)
        return sums, None

    tile = jax.ShapeDtypeStruct((b, height, width, c), images.dtype)
    num_classes = jax.eval_shape(score, tile).shape[-1]
    groups = (places.reshape(-1, windows, 2), weights.reshape(-1, windows))
    sums, _ = jax.lax.scan(
        add, jnp.zeros((b, h, w, num_classes)), jax.tree.map(jnp.asarray, groups)
    )
    return sums / jnp.asarray(covered, jnp.float32)[None, :, :, None]


@dataclasses.dataclass(frozen=True)
class Inference:
    """A segmenter's way to look at an image; call it under `jax.jit`: a shape compiles once.

    Attributes:
        crop: (height, width) of windows; None scores images whole.
        stride: (down, right) of windows; by default two thirds of the crop, 341 for 512.
        windows: see `slide`.
        scales: of the image, whose scores are averaged; each is resized back to the image's size.
        flip: averages with what the mirrored image gives, mirrored back.
        multiple: sides that the model sees whole, of images or of windows that are smaller than
            the crop, are resized to multiples of it (the patch size).

    >>> pixels = jnp.arange(2.0 * 5 * 6).reshape(1, 5, 6, 2)
    >>> scores = Inference((4, 4), (2, 3), flip=True)(lambda images: 2 * images, pixels, (5, 6))
    >>> bool(jnp.allclose(scores, 2 * pixels))
    True
    """

    crop: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    windows: int = 1
    scales: tuple[float | int, ...] = (1.0,)
    flip: bool = False
    multiple: int = 1

    def __post_init__(self) -> None:
        sides = (*(self.crop or ()), *(self.stride or ()), self.windows, self.multiple)
        if min(sides) < 1 or not self.scales or min(self.scales) <= 0:
            raise ConfigError(f"{self}: sides and counts are at least 1, scales above 0")

    def __call__(
        self, score: Score, images: Float[Array, "b h w c"], size: tuple[int, int]
    ) -> Float[Array, "b {size[0]} {size[1]} k"]:
        """Scores at `size` (height, width), that of the labels; argmax gives the classes.

        Args:
            images: as the model sees them.
        """
        each = [self._at_scale(score, images, scale) for scale in self.scales]
        if len(each) == 1:
            return resize_bilinear(each[0], size)
        own = (images.shape[1], images.shape[2])
        mean = jnp.stack([resize_bilinear(one, own) for one in each]).mean(0)
        return resize_bilinear(mean, size)

    def _at_scale(self, score: Score, images: Array, scale: float | int) -> Array:
        crops = self.crop or (np.inf, np.inf)
        height, width = (
            self._side(side, scale, crop)
            for side, crop in zip(images.shape[1:3], crops, strict=True)
        )
        images = resize_bilinear(images, (height, width)).astype(images.dtype)
        scores = self._scores(score, images)
        if self.flip:
            scores = (scores + self._scores(score, images[:, :, ::-1])[:, :, ::-1]) / 2
        return scores

    def _side(self, side: int, scale: float, crop: float) -> int:
        """A scaled side; a multiple where the model sees all of it."""
        scaled = round(side * scale)
        if scaled >= crop:
            return scaled
        return max(round(side * scale / self.multiple), 1) * self.multiple

    def _scores(self, score: Score, images: Array) -> Array:
        if self.crop is None:
            return score(images).astype(jnp.float32)
        down, right = self.stride or (round(self.crop[0] * 2 / 3), round(self.crop[1] * 2 / 3))
        return slide(score, images, self.crop, (down, right), windows=self.windows)


def _coverage(size: int, starts: list[int], crop: int) -> np.ndarray:
    """Return the number of windows that cover each place along an axis."""
    counts = np.zeros(size)
    for start in starts:
        counts[start : start + crop] += 1
    return counts
