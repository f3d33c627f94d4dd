"""Models whose frozen matrices have the values that int8 leaves of them."""

from __future__ import annotations

from typing import Any

from flax import nnx

from vadapt.partition import Tree, flatten
from vadapt.quantization import matrices, rounded
from vadapt.weights.base import BACKBONE, remember
from vadapt.weights.load import assign


def round_frozen(model: nnx.Module, frozen: Tree) -> None:
    """Round the frozen matrices of a model as int8 does, in place; its base stays what it was.

    Args:
        frozen: of the model's partition.

    Raises:
        ConfigError: qwix is not installed.
    """
    held = matrices(frozen)
    found = rounded(held)
    remember_matrices(model, held)
    assign(model, flatten(found))


def remember_matrices(model: Any, frozen: Tree) -> None:
    """Keep what a model's frozen matrices were before they were rounded, for `base.base_of`."""
    backbone = getattr(model, "backbone", model)
    prefix = BACKBONE if backbone is not model else ""
    known = {prefix + path for path, _ in getattr(backbone, "resized_from", ())}
    held = flatten(matrices(frozen))
    remember(model, {path: array for path, array in held.items() if path not in known})
