"""The one vector an image that a head of labels classifies, by which images are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Array, Float

from vadapt.heads.linear import pooled


def embed(
    head: Any, maps: Sequence[Float[Array, "b _h _w _d"]], read: Mapping[str, Any]
) -> Float[Array, "b d"]:
    """What a head of `heads.LABELS` makes of its maps before it classifies.

    Its own `embed`, if it has one; else its last map, pooled as it says (`pool`, see
    `linear.pooled`) or, if it does not say, by the mean of all places.

    Args:
        read: the named outputs of the backbone that the head reads.
    """
    if hasattr(head, "embed"):
        return head.embed(maps, **read)
    pool = getattr(head, "pool", "img_pool")
    return pooled(maps[-1], read.get("prompts"), pool, read.get("class_token"))
