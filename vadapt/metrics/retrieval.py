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
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    _check(features, labels, (*numbers, block))
    n, most = len(features), min(max(numbers), len(features) - 1)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    units = jnp.asarray(features / np.maximum(lengths, np.finfo(np.float32).tiny))
    block = min(block, n)
    hits = np.zeros(most, np.int64)
    for start in range(0, n, block):
        # Of the same size each, so that one program serves all; those seen before are left out.
        first = min(start, n - block)
        rank = np.asarray(_nearest(units, first, block, most))[start - first :]
        same = labels[rank] == labels[start : start + len(rank), None]
        hits += np.maximum.accumulate(same, axis=1).sum(axis=0)
    return {k: float(hits[min(k, most) - 1]) / n for k in numbers}


def _check(features: np.ndarray, labels: np.ndarray, counts: Sequence[int]) -> None:
    if len(features) < 2 or len(labels) != len(features):
        raise DataError(
            f"{len(features)} images with {len(labels)} labels; give one label for each of at "
            "least two images"
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
