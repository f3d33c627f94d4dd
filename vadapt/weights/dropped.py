"""Smaller backbones: those blocks alone that a plan runs, as ordinary files of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flax import nnx

from vadapt.errors import ConfigError
from vadapt.nn.plans import spell
from vadapt.weights.adapter_file import save_model
from vadapt.weights.headers import BLOCKS, GLOBAL


def without_blocks(backbone: Any) -> Any:
    """A backbone without a plan that computes what the given one does in its plan.

    Raises:
        ConfigError: the plan has groups, or a block twice, which no order of blocks computes.
    """
    plan = getattr(backbone, "plan", None)
    if plan is None:
        return backbone
    if not all(isinstance(i, int) for i in plan) or len({*plan}) != len(plan) or not plan:
        raise ConfigError(
            f"plan {spell(plan)} is no list of different blocks, so that no smaller backbone "
            "computes the same; leave blocks out, as in 0-3,8-11"
        )
    smaller = nnx.clone(backbone)
    smaller.blocks = nnx.List([smaller.blocks[i] for i in plan])
    smaller.plan = None
    return smaller


def save_dropped(path: str | Path, backbone: Any, dtype: str = "float32") -> None:
    """Writes `without_blocks` for `vadapt.create`, which takes the number of blocks from the file.

    Args:
        backbone: plain, without adapters.
        dtype: see `save_model`.

    Raises:
        ConfigError: see `without_blocks`.
    """
    smaller, plan = without_blocks(backbone), getattr(backbone, "plan", None)
    said = {} if plan is None else {BLOCKS: list(plan)}
    if said and hasattr(smaller.blocks[0], "is_global"):
        said[GLOBAL] = [i for i, block in enumerate(smaller.blocks) if block.is_global]
    save_model(path, smaller, dtype, **said)
