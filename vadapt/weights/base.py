"""The identity of a base: of the pretrained values of a backbone, whatever became of them since."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vadapt.partition import Statistic, variables

BACKBONE = "backbone/"


def digest(array: Any) -> str:
    """A hash of an array, rounded to bfloat16.

    So a base that a run kept in bfloat16 and the float32 one that it came from are one base.
    """
    return hashlib.sha256(np.asarray(array).astype(jnp.bfloat16).tobytes()).hexdigest()[:16]


def base_of(model: Any, learned: Collection[str] = ()) -> str:
    """A hash of what a model's backbone was before anything was learned.

    It is of the backbone alone, running statistics included, and of arrays as they were before
    they were resized for an image or a patch size: the base is the same under any head, at any
    size, and with any method in it.

    Args:
        learned: paths of the model that were trained, which are no part of the base.
    """
    prefix = BACKBONE if hasattr(model, "backbone") else ""
    backbone = getattr(model, "backbone", model)
    originals = dict(getattr(backbone, "resized_from", ()))
    whole = hashlib.sha256()
    for path, variable in sorted(variables(backbone).items()):
        kind = type(variable)
        if prefix + path in learned or not (kind is nnx.Param or issubclass(kind, Statistic)):
            continue
        whole.update(path.encode())
        whole.update((originals.get(path) or digest(variable[...])).encode())
    return whole.hexdigest()[:16]


def remember(model: Any, originals: Mapping[str, Any]) -> None:
    """Keep what arrays of a model, by path, were before they were resized, for `base_of`."""
    prefix = BACKBONE if hasattr(model, "backbone") else ""
    backbone = getattr(model, "backbone", model)
    known = dict(getattr(backbone, "resized_from", ()))
    for path, array in originals.items():
        if path.startswith(prefix):
            known[path.removeprefix(prefix)] = array if isinstance(array, str) else digest(array)
    if known:
        backbone.resized_from = tuple(sorted(known.items()))
