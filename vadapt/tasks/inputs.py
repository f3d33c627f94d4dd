"""Images on their way into a model: random crops of `config.data`, normalisation on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from vadapt.data.pipeline import Feed
from vadapt.data.roi_crop import RandomRoiCrop, RoiRules
from vadapt.data.transforms import HorizontalFlip, RandomResizedCrop, Transform


def random_crop(data: Any) -> Transform:
    """The crop of `config.data`: anywhere, or around candidates of objects ("rois" of a record).

    Fields: `image_size`, `crop_area`; and for the latter `roi_probability` (0: anywhere; else see
    `RoiRules.probability`) and `roi_min_side` (of a crop, in pixels; a candidate has two thirds).
    """
    size, area = tuple(data.image_size), tuple(data.crop_area)
    if not data.get("roi_probability", 0.0):
        return RandomResizedCrop(size, area=area)
    rules = RoiRules(
        probability=data.roi_probability,
        min_side=data.roi_min_side,
        min_candidate_side=max(round(data.roi_min_side * 2 / 3), 1),
    )
    return RandomRoiCrop(size, rules, area=area)


def crop_feed(data: Any, fields: tuple[str, ...] = ("image",)) -> Feed:
    """Random crops, see `random_crop`, flipped half of the time.

    Args:
        fields: of a record, the ones that the task reads; only these travel to the device.
    """
    reads = (*fields, "rois") if data.get("roi_probability", 0.0) else fields
    return Feed([random_crop(data), HorizontalFlip()], fields, reads)


def normalise(
    images: UInt8[Array, "b h w c"], mean: float | Sequence[float], std: float | Sequence[float]
) -> Float[Array, "b h w 3"]:
    """Images 0-255 as the model sees them: (x / 255 - mean) / std, one channel shown thrice.

    Args:
        mean, std: of all channels, or one of each.
    """
    means, stds = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1) for x in (mean, std))
    x = (images.astype(jnp.float32) / 255.0 - means) / stds
    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


def blank_padding(
    images: Float[Array, "b h w c"], sizes: Int[Array, "b 2"]
) -> Float[Array, "b h w c"]:
    """Zero, that is the mean of normalised images, at the right of and below (height, width)."""
    rows = jnp.arange(images.shape[1])[None, :] < sizes[:, :1]
    columns = jnp.arange(images.shape[2])[None, :] < sizes[:, 1:]
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(inside, images, jnp.zeros((), images.dtype))


def denormalise(
    images: Float[Array, "b h w 3"], mean: float, std: float
) -> Float[Array, "b h w 3"]:
    """The inverse of `normalise`, to 0-1."""
    return images * std + mean
