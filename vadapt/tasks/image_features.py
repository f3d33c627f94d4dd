"""Features of whole images, and how well classes can be read from them without training.

A model's features are what `System.embed` gives: what its head would classify.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from vadapt.data import pipeline
from vadapt.data.progress import with_progress
from vadapt.errors import ConfigError, DataError, nearest
from vadapt.metrics.knn import knn_votes
from vadapt.metrics.linear_probe import fit_chosen_probe
from vadapt.metrics.multilabel import all_rows
from vadapt.system import System
from vadapt.tasks import image_labels

_QUERIES = 256  # whose cosines to all training images are held at once


class Side(NamedTuple):
    """Images as features, in the order of their source; those that cannot be read are left out."""

    features: Float[np.ndarray, "n d"]
    targets: Int[np.ndarray, "n k"]  # as in a source's records
    elements: Int[np.ndarray, " n"]  # their numbers in the source

    def labeled(self) -> Side:
        """The images that have a class."""
        there = np.flatnonzero((self.targets > 0).any(axis=1))
        return Side(*(part[there] for part in self))

    def labels(self) -> Int[np.ndarray, " n"]:
        """The one class of each image; as many as there are classes for one that has none."""
        there = self.targets > 0
        return np.where(there.any(1), there.argmax(1), there.shape[1])


Embed = Callable[..., Any]  # of a model's graph, its tree and images, uint8 [b, h, w, c], to [b, d]
# From the training images to a function from features to scores [m, k] of all classes.
Reader = Callable[[Side], Callable[[Float[np.ndarray, "m d"]], Float[np.ndarray, "m k"]]]


def nearest_votes(train: Side) -> Callable[[np.ndarray], np.ndarray]:
    """Votes of the 20 nearest training images, see `metrics.knn`; NaN for classes without one."""
    number, train = train.targets.shape[1], train.labeled()
    learned = jnp.asarray(train.features), jnp.asarray(train.labels())

    def scores(features: np.ndarray) -> np.ndarray:
        found = []
        for start in range(0, len(features), _QUERIES):
            rows = features[start : start + _QUERIES]
            padded = np.resize(rows, (_QUERIES, rows.shape[1]))  # of one shape, compiled once
            votes = knn_votes(*learned, jnp.asarray(padded), num_classes=number)
            found.append(np.asarray(votes)[: len(rows)])
        votes = np.concatenate(found)
        return np.where(votes > 0, votes, np.nan)

    return scores


def probe_logits(train: Side) -> Callable[[np.ndarray], np.ndarray]:
    """The logits of a logistic regression, see `metrics.linear_probe.fit_chosen_probe`."""
    number = train.targets.shape[1]
    return fit_chosen_probe(train.features, train.labels(), num_classes=number)[0].logits


# By the names in `config.eval.features`, which are those of the scores.
READERS: Mapping[str, Reader] = {"knn": nearest_votes, "probe": probe_logits}


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """What `config.eval.features` names.

    Raises:
        ConfigError: it is none of `READERS`.
    """
    for name in names:
        if name not in READERS:
            raise ConfigError(f"config.eval.features: {name!r}; {nearest(name, READERS)}")
    return tuple(names)


def side_of(embed: Embed, model: System, config: Any, data: Any, source: Any, title: str) -> Side:
    """Features of all images of a source, seen as in testing; every process gets all of them.

    Args:
        data: `config.data`, or a set that differs from it, which says how images are resized.

    Raises:
        DataError: features that are not finite.
    """
    graph, state = nnx.split(model)
    tree = nnx.to_pure_dict(state)
    feed = image_labels.evaluation_feed(data)
    batches = pipeline.evaluation_batches(data, feed, source, config.eval.batch)
    rows, number = [], 0
    for batch in with_progress(batches, title):
        features = np.asarray(embed(graph, tree, batch["image"]), np.float32)
        number = features.shape[1]
        parts = batch["valid"][:, None], features, batch["labels"]
        rows.append(np.concatenate([np.asarray(x, np.float32) for x in parts], axis=1))
    found = all_rows(rows)
    elements = np.flatnonzero(found[:, 0] > 0)
    features, targets = np.split(found[elements, 1:], [number], axis=1)
    if not np.isfinite(features).all():
        raise DataError(f"{title}: some are not finite; see what made them")
    return Side(features, targets.astype(np.int8), elements)
