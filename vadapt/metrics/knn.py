"""Top-1 accuracy of the nearest neighbors of frozen features, for which nothing is fitted."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@functools.partial(jax.jit, static_argnames=("num_classes", "k"))
def knn_votes(
    train: Float[Array, "n d"],
    labels: Int[Array, " n"],
    test: Float[Array, "m d"],
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Float[Array, "m c"]:
    """The votes of the k training features of largest cosine, each weighing exp(cosine / t).

    Source: DINO, arXiv:2104.14294; Wu et al., arXiv:1805.01978.
    """
    unit = [
        x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (test, train)
    ]
    cosines, ids = jax.lax.top_k(unit[0] @ unit[1].T, min(k, len(train)))
    votes = jax.nn.one_hot(labels[ids], num_classes) * jnp.exp(cosines / temperature)[..., None]
    return votes.sum(axis=1)


def knn_accuracy(
    train: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    test: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, " m"],
    *,
    num_classes: int,
) -> float:
    """The share in [0, 1] of test features whose class gets most votes; see `knn_votes`."""
    sides = [jnp.asarray(x, jnp.float32) for x in (train, test)]
    votes = knn_votes(sides[0], jnp.asarray(labels), sides[1], num_classes=num_classes)
    return float(np.mean(np.asarray(votes).argmax(-1) == test_labels))
