"""Images at the border of a model: shapes and types that no backbone takes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from vadapt.errors import ShapeError

_MADE = "vadapt.preprocess(images, model) makes them of arrays, images of Pillow's and paths"


def check_images(images: Any, channels: int) -> None:
    """Refuse what is no batch of normalized images [b, h, w, channels], while tracing.

    Without it a convolution would complain of its own dimensions, or take integers 0-255 as they
    are.

    Raises:
        ShapeError: says what came and what to do.

    >>> check_images(jnp.zeros((3, 64, 64)), 3)
    Traceback (most recent call last):
    vadapt.errors.ShapeError: images [3, 64, 64] have no batch axis; expected [b, h, w, 3]: give \
images[None]; their channels come first: give jnp.moveaxis(images, -3, -1)
    """
    expected = f"expected [b, h, w, {channels}]"
    if not hasattr(images, "shape") or not hasattr(images, "dtype"):
        raise ShapeError(f"images are an array, {expected}; got a {type(images).__name__}: {_MADE}")
    shape = tuple(images.shape)
    shown = f"images [{', '.join(map(str, shape))}]"
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ShapeError(f"{shown} of {images.dtype}; a model takes normalized floats: {_MADE}")
    if len(shape) not in (3, 4):
        raise ShapeError(f"{shown} have {len(shape)} axes; {expected}: {_MADE}")
    first = shape[-3] == channels != shape[-1]
    turn = "their channels come first: give jnp.moveaxis(images, -3, -1)"
    if len(shape) == 3:
        more = f"; {turn}" if first else ""
        raise ShapeError(f"{shown} have no batch axis; {expected}: give images[None]{more}")
    if first:
        raise ShapeError(f"{shown}: {expected}; {turn}")
    if shape[-1] != channels:
        raise ShapeError(f"{shown} have {shape[-1]} channels; {expected}: {_MADE}")
