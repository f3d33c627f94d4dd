"""Small dense heads, their maps and ground truths."""

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vadapt.boxes.geometry import ImageSizes
from vadapt.heads import BOXES, box_head
from vadapt.partition import variables
from vadapt.weights.load import with_arrays

STRIDES, SIZE, CLASSES, WIDTH, SLOTS = (16, 32), (64, 96), 3, 8, 5
NAMES = sorted(BOXES)
NORMED = ("atss", "gfl")


def new(name, seed=0, **options):
    """A head as it starts."""
    groups = {"num_groups": 4} if name in NORMED else {}
    options = {"width": WIDTH, "depth": 1, "strides": STRIDES, **groups, **options}
    return box_head(name, [WIDTH] * len(STRIDES), CLASSES, rngs=nnx.Rngs(seed), **options)


@functools.cache
def made(name, **options):
    """A head whose scores differ, some of them high."""
    head, rng = new(name, **options), np.random.default_rng(1)
    values = {
        path: rng.normal(scale=0.3, size=x[...].shape).astype("f4") + path.endswith("scale")
        for path, x in variables(head).items()
    }
    return with_arrays(head, values)


@functools.cache
def maps(batch=4):
    rng = np.random.default_rng(2)
    return tuple(
        jnp.asarray(rng.normal(size=(batch, SIZE[0] // s, SIZE[1] // s, WIDTH)), "f4")
        for s in STRIDES
    )


def truths(batch=4, slots=SLOTS):
    """As many boxes as an image's number says: none in the first."""
    rng = np.random.default_rng(3)
    first = rng.uniform(0, 40, (batch, slots, 2))
    boxes = np.concatenate([first, first + rng.uniform(8, 50, (batch, slots, 2))], axis=-1)
    classes = rng.integers(0, CLASSES, (batch, slots))
    valid = np.arange(slots)[None] < np.arange(batch)[:, None]
    return jnp.asarray(boxes, "f4"), jnp.asarray(classes, jnp.int32), jnp.asarray(valid)


def whole(batch=4):
    return ImageSizes.whole(batch, SIZE)
