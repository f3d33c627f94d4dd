"""Rows that several processes hold, brought together on every one of them."""

from __future__ import annotations

import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped


def of_all_processes(rows: Shaped[np.ndarray, "n *c"]) -> Shaped[np.ndarray, "m *c"]:
    """The rows of all processes, each of which may have another number; every process calls it."""
    counts = np.asarray(multihost_utils.process_allgather(np.asarray(len(rows)))).reshape(-1)
    filled = np.zeros((int(counts.max()), *rows.shape[1:]), rows.dtype)
    filled[: len(rows)] = rows
    everyone = np.asarray(multihost_utils.process_allgather(filled))
    everyone = everyone.reshape(len(counts), *filled.shape)
    return np.concatenate([part[:count] for part, count in zip(everyone, counts, strict=True)])
