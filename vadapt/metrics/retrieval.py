"""Retrieval: whether an image's nearest others show what it shows."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vadapt.errors import DataError


def recall_at(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " m"],
    numbers: Sequence[int] = (1, 2, 4, 8),
    *,
    block: int = 1024,
) -> dict[int, float]:
    """The share of images with one of their own class among the nearest k others, by k.

    Every image is a query against all others, by the cosine of features, in float32; of equally
    near ones the earlier counts as nearer. A query whose class has no other image is never
    answered. With fewer than k others all of them count.

    Args:
        labels: of as many images, one class each.
        numbers: the ks.
        block: queries compared at once, so that block * n similarities are held, not n * n.

    Raises:
        DataError: fewer than two images, labels for another number of them, features that are not
            finite, or a k or a block below 1.
    """
    _check(features, (*numbers, block), len(labels))
    return recalls(labels, nearest_others(features, max(numbers), block=block), numbers)


def recalls(
    labels: Int[np.ndarray, " n"], nearest: Int[np.ndarray, "n k"], numbers: Sequence[int]
) -> dict[int, float]:
    """The shares of `recall_at`, from what `nearest_others` gives for the largest number."""
    labels = np.asarray(labels)
    hits = np.maximum.accumulate(labels[nearest] == labels[:, None], axis=1).sum(axis=0)
    return {k: float(hits[min(k, len(hits)) - 1]) / len(labels) for k in numbers}


def nearest_others(
    features: Float[np.ndarray, "n d"], number: int, *, block: int = 1024
) -> Int[np.ndarray, "n k"]:
    """The numbers of the nearest others of every image, the nearest first; see `recall_at`.

    As many as `number` says, or all others where there are fewer.
    """
    features = np.asarray(features, np.float32)
    _check(features, (number, block))
    n, most = len(features), min(number, len(features) - 1)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    units = jnp.asarray(features / np.maximum(lengths, np.finfo(np.float32).tiny))
    block = min(block, n)
    found = np.empty((n, most), np.int64)
    for start in range(0, n, block):
        # Of the same size each, so that one program serves all.
        first = min(start, n - block)
        found[first : first + block] = _nearest(units, first, block, most)
    return found


def _check(features: np.ndarray, counts: Sequence[int], labels: int | None = None) -> None:
    if len(features) < 2 or labels not in (None, len(features)):
        given = "" if labels is None else f" with {labels} labels"
        raise DataError(
            f"{len(features)} images{given}; give one label for each of at least two images"
        )
    if not np.isfinite(features).all():
        bad = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise DataError(f"the features of image {bad} are not finite; see what made them")
    if min(counts) < 1:
        raise DataError(f"ks and the block are {tuple(counts)}; all of them are at least 1")


@functools.partial(jax.jit, static_argnums=(2, 3))
def _nearest(
    units: Float[Array, "n d"], first: Int[Array, ""] | int, block: int, most: int
) -> Int[Array, "q k"]:
    """Numbers of the nearest others of `block` images from the number `first` on."""
    queries = jax.lax.dynamic_slice_in_dim(units, first, block)
    similar = jnp.einsum("qd,nd->qn", queries, units, precision="highest")
    itself = jnp.arange(block)[:, None] + first == jnp.arange(len(units))[None]
    return jax.lax.top_k(jnp.where(itself, -jnp.inf, similar), most)[1]
