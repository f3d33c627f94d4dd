"""Mixing the images of a batch, and their labels alike, on the device: mixup and cutmix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def mix(
    key: Key[Array, ""],
    images: Float[Array, "b h w c"],
    targets: Float[Array, "b l"],
    *,
    mixup: float | int = 0.8,
    cutmix: float | int = 1.0,
) -> tuple[Float[Array, "b h w c"], Float[Array, "b l"]]:
    """A batch mixed with itself in reverse, by one of both ways at even odds.

    Mixup adds both images by shares; cutmix puts a box of the other into the one, its share of the
    area. Labels are mixed by the shares.

    Args:
        mixup, cutmix: alpha of Beta(alpha, alpha), of which the shares are drawn; 0 for never.

    Source: mixup, arXiv:1710.09412; CutMix, arXiv:1905.04899.
    """
    if not mixup and not cutmix:
        return images, targets
    choice_key, share_key, box_key = jax.random.split(key, 3)
    cuts = jax.random.bernoulli(choice_key, float(bool(cutmix)) / (bool(cutmix) + bool(mixup)))
    alpha = jnp.where(cuts, cutmix or 1.0, mixup or 1.0)
    share = jax.random.beta(share_key, alpha, alpha)
    inside = _box(box_key, images.shape[1], images.shape[2], 1.0 - share)
    # What stays of the image at every pixel: the share, or all of it outside of the box.
    kept = jnp.where(cuts, 1.0 - inside.astype(jnp.float32), jnp.broadcast_to(share, inside.shape))
    share = kept.mean()
    pixels = jnp.broadcast_to(kept[None, :, :, None].astype(images.dtype), images.shape)
    mixed = pixels * images + (1 - pixels) * images[::-1]
    return mixed, share * targets + (1.0 - share) * targets[::-1]


def _box(key: Array, height: int, width: int, area: Array) -> Array:
    """Where a box of this share of the area lies, about any point; cut at the edges."""
    inside = []
    for side, one in zip((height, width), jax.random.split(key), strict=True):
        centre = jax.random.uniform(one) * side
        half = jnp.sqrt(area) * side / 2
        places = jnp.arange(side, dtype=jnp.float32) + 0.5
        inside.append(jnp.abs(places - centre) < half)
    return inside[0][:, None] & inside[1][None, :]
