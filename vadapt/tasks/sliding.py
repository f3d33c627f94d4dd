"""Inference on images of any size: whole or in windows, at several scales, mirrored; averaged."""

from __future__ import annotations

import dataclasses
import math
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
    check_windows(crop, stride, windows)
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
        multiple: what the model sees is padded to multiples of it (the patch size, the stride of
            its coarsest map) at the right and below, and the padding's scores are cut off: a model
            would leave out, or stretch, what does not fill a step. Zero, the mean of normalised
            images, is what is padded with.

    Raises:
        ConfigError: settings that cannot work, see `check_windows`; scales that are not above 0; a
            crop that is no multiple, see `check_multiple`.

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
        check_windows(self.crop, self.stride, self.windows)
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise ConfigError(
                f"config.eval.scales is {self.scales}; give one factor or more, all above 0, as "
                "(0.5, 1.0); (1.0,) is the image as it is"
            )
        if self.multiple < 1:
            raise ConfigError(f"multiple is {self.multiple}; it is 1 or more")
        check_multiple("config.eval.crop", self.crop, self.multiple)

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
        height, width = (max(round(side * scale), 1) for side in images.shape[1:3])
        images = resize_bilinear(images, (height, width)).astype(images.dtype)
        scores = self._scores(score, images)
        if self.flip:
            scores = (scores + self._scores(score, images[:, :, ::-1])[:, :, ::-1]) / 2
        return scores

    def _scores(self, score: Score, images: Array) -> Array:
        def padded(images: Array) -> Array:
            height, width = images.shape[1:3]
            below, right = (-side % self.multiple for side in (height, width))
            images = jnp.pad(images, ((0, 0), (0, below), (0, right), (0, 0)))
            return score(images)[:, :height, :width]

        if self.crop is None:
            return padded(images).astype(jnp.float32)
        down, right = self.stride or (round(self.crop[0] * 2 / 3), round(self.crop[1] * 2 / 3))
        return slide(padded, images, self.crop, (down, right), windows=self.windows)


def check_windows(
    crop: tuple[int, ...] | None, stride: tuple[int, ...] | None, windows: int
) -> None:
    """Refuse windows that cannot be, or leave pixels out.

    Raises:
        ConfigError: tells the setting of `config.eval` and what it may be.
    """
    for name, sides in (("crop", crop), ("stride", stride)):
        if sides is not None and (len(sides) != 2 or min(sides) < 1):
            raise ConfigError(
                f"config.eval.{name} is {sides}; give (height, width) in pixels, both 1 or more"
            )
    if stride and not crop:
        raise ConfigError(
            f"config.eval.stride is {stride} without a crop; give config.eval.crop, the size of "
            "the windows, or leave the stride out"
        )
    if stride and crop and any(step > side for step, side in zip(stride, crop, strict=True)):
        raise ConfigError(
            f"config.eval.stride is {stride} and the crop {crop}: pixels between windows would be "
            "in none; give a stride of at most the crop"
        )
    if windows < 1:
        raise ConfigError(f"config.eval.windows is {windows}; at least 1 is scored at a time")


def check_multiple(name: str, size: tuple[int, ...] | None, multiple: int) -> None:
    """Refuse a size, set by `name`, that the model would have to be padded for at every window.

    Raises:
        ConfigError: a side is no multiple; names the next ones.
    """
    if size is None or not any(side % multiple for side in size):
        return
    less = tuple(max(side // multiple, 1) * multiple for side in size)
    more = tuple(-(-side // multiple) * multiple for side in size)
    raise ConfigError(
        f"{name} is {size}; the model sees steps of {multiple} pixels: give {less} or {more}"
    )


def _coverage(size: int, starts: list[int], crop: int) -> np.ndarray:
    """Return the number of windows that cover each place along an axis."""
    counts = np.zeros(size)
    for start in starts:
        counts[start : start + crop] += 1
    return counts
