"""What the layers of a model have in common, and scores of plans that run them otherwise.

Source: Transformer Layers as Painters, arXiv:2407.09298, and its released code. The token-wise
similarity is ours: a few tokens or channels of large norm outweigh all others in flattened states.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_LEAST_NORM = 1e-8


def layer_similarity(
    states: Float[Array, "t b n d"], mean: Float[Array, "t d"] | None = None
) -> Float[Array, "t t"]:
    """The cosine of every two states of an image, averaged over the images of a batch.

    Args:
        states: what enters the first block, and what every block gives, before the final norm.
        mean: of every state over a data set. With it, cosines are those of tokens, without their
            mean, averaged over the tokens; without it, those of an image's tokens as one vector.
    """
    states = states.astype(jnp.float32)
    if mean is None:
        rows = states.reshape(*states.shape[:2], -1)
    else:
        rows = (states - mean[:, None, None].astype(jnp.float32)).reshape(
            states.shape[0], -1, states.shape[-1]
        )
    norms = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    rows = rows / jnp.maximum(norms, _LEAST_NORM)
    # The mean over images of products of rows is one product of long rows.
    return jnp.einsum("ibd,jbd->ij", rows, rows) / rows.shape[1]


def average(matrices: Iterable[Float[Array, "t t"]]) -> Float[np.ndarray, "t t"]:
    """The mean of the batches' matrices, each of the same weight."""
    return np.mean([np.asarray(matrix, np.float64) for matrix in matrices], axis=0)


class Groups(NamedTuple):
    """How many blocks at the beginning and at the end of a model are unlike its middle."""

    beginning: int
    ending: int
    threshold: float


def groups(matrix: Float[np.ndarray, "t t"], threshold: float | None = None) -> Groups:
    """Blocks at both ends whose states are less like the middle one's than a threshold.

    Args:
        matrix: of `layer_similarity`; its first state is what enters the first block.
        threshold: by default half-way between the least and the median of the middle's row.
    """
    row = np.asarray(matrix)[len(matrix) // 2]
    if threshold is None:
        threshold = float((row.min() + np.median(row)) / 2)
    like = row[1:] >= threshold  # by block
    if not like.any():
        return Groups(len(like), 0, threshold)
    return Groups(int(like.argmax()), int(like[::-1].argmax()), threshold)


def normalised(
    scores: Float[np.ndarray, "*v k"],
    chance: Float[np.ndarray, " k"] | Sequence[float],
    whole: Float[np.ndarray, " k"] | Sequence[float],
) -> Float[np.ndarray, "*v k"]:
    """Scores of variants on k tasks, such that 0 is chance and 1 the unchanged model."""
    low, high = np.asarray(chance), np.asarray(whole)
    return (np.asarray(scores) - low) / (high - low)
