"""Sources whose rare images come more often in an epoch than common ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Integer

from vadapt.data.identity import Identity, identify
from vadapt.data.sources import Record, Source, name_of
from vadapt.errors import ConfigError


class Repeated:
    """A source with every element `counts` times, one after the other; 0 leaves it out.

    >>> source = Repeated([{"name": "a"}, {"name": "b"}], [1, 2])
    >>> [source[i]["name"] for i in range(len(source))]
    ['a', 'b', 'b']
    """

    def __init__(self, source: Source, counts: Sequence[int] | Integer[np.ndarray, " n"]):
        if len(counts) != len(source) or min(counts, default=0) < 0:
            raise ConfigError(
                f"{len(counts)} counts for {len(source)} elements: give one of each, 0 or more"
            )
        self.source = source
        self.places = np.repeat(np.arange(len(source)), counts)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.places[index])]

    def __repr__(self) -> str:
        return f"Repeated({self.source!r}, {len(self)} places)"

    def name(self, index: int) -> str:
        return name_of(self.source, int(self.places[index]))

    def identity(self) -> Identity:
        """That of what is repeated."""
        return identify(self.source)


def repeat_factors(
    targets: Integer[np.ndarray, "n l"], threshold: float | int
) -> Float[np.ndarray, " n"]:
    """Return how often an image of rare labels should come for one of common labels.

    The largest of sqrt(threshold / share of the images that have the label) over its labels.

    Source: LVIS, arXiv:1908.03195, section 5; there with 0.001, in GKGNet with 0.01.
    """
    there = targets > 0
    shares = there.mean(0)
    with np.errstate(divide="ignore"):
        factors = np.maximum(np.sqrt(threshold / shares), 1.0)
    return np.where(there, factors, 1.0).max(1, initial=1.0)


def balanced_counts(
    targets: Integer[np.ndarray, "n l"], threshold: float | int
) -> Int[np.ndarray, " n"]:
    """Times that each image is listed in an epoch: `repeat_factors`, rounded up."""
    return np.ceil(repeat_factors(targets, threshold)).astype(np.int64)
