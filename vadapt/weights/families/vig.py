"""Names of ViG's and GKGNet's checkpoints.

Blocks and the convolutions between stages stand in one sequence there, so that the table depends
on how many blocks the stages have. The bias by relative position is computed here: stored ones are
compared with it and passed over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vadapt.errors import WeightsError
from vadapt.kernels.position_bias import PositionBias, table
from vadapt.weights.tables import Family, Rule, Table, batch_norm, conv, linear

_PREFIX = r"(?:|backbone\.)"  # GKGNet's, before all names but those of its head
_SEQUENCE = re.compile(r"(?:|backbone\.)backbone\.(\d+)\.(0\.fc1|conv)\.0\.weight")
_RELATIVE = re.compile(r"(.*backbone\.\d+\.0\.)relative_pos")
_SAME = 2e-6  # what the released matrices differ from the computed ones at most


def linear_norm(source: str, target: str, layout: str = "pointwise") -> tuple[Rule, ...]:
    """A 1x1 convolution there, a linear layer here, and its norm."""
    return (
        Rule(source + r"\.0\.weight", target + "/linear/kernel", layout),
        Rule(source + r"\.0\.bias", target + "/linear/bias"),
        *batch_norm(source + r"\.1", target + "/norm"),
    )


def conv_rules(source: str, target: str) -> tuple[Rule, ...]:
    """The graph convolution; the names without a last dot and stroke, here and below."""
    return linear_norm(source + r"\.gconv\.nn", target + "/mix", "parts")


def graph_rules(source: str, target: str) -> tuple[Rule, ...]:
    """The graph's branch of a block."""
    return (
        *linear_norm(source + r"\.fc1", target + "/fc1"),
        *conv_rules(source + r"\.graph_conv", target + "/conv"),
        *linear_norm(source + r"\.fc2", target + "/fc2"),
    )


def mlp_rules(source: str, target: str) -> tuple[Rule, ...]:
    """The other branch of a block."""
    return (
        *linear_norm(source + r"\.fc1", target + "/fc1"),
        *linear_norm(source + r"\.fc2", target + "/fc2"),
    )


def _conv_norm(source: str, first: int, target: str) -> tuple[Rule, ...]:
    """A convolution and its norm, which follow each other in a sequence."""
    return (
        *conv(rf"{source}\.{first}", target + "/conv"),
        *batch_norm(rf"{source}\.{first + 1}", target + "/norm"),
    )


def _trunk_rules(depths: Sequence[int]) -> tuple[Rule, ...]:
    stem = [_conv_norm(_PREFIX + r"stem\.convs", 3 * i, f"stem/{i}") for i in range(5)]
    rules = [Rule(_PREFIX + "pos_embed", "positions/pos_embed", "places"), *sum(stem, ())]
    number = 0
    for i, depth in enumerate(depths):
        if i:
            name = rf"{_PREFIX}backbone\.{number}\.conv"
            rules += _conv_norm(name, 0, f"downsamples/{i - 1}")
            number += 1
        for j in range(depth):
            name, path = rf"{_PREFIX}backbone\.{number}", f"stages/{i}/{j}"
            rules += [*graph_rules(name + r"\.0", path), *mlp_rules(name + r"\.1", path + "/mlp")]
            number += 1
    return tuple(rules)


def block_rules(source: str, target: str) -> tuple[Rule, ...]:
    """A block of labels."""
    return (*graph_rules(source, target), *mlp_rules(source + r"\.ffn", target + "/mlp"))


LABELS: tuple[Rule, ...] = (
    Rule(_PREFIX + r"label_lt\.weight", "head/table"),
    *block_rules(_PREFIX + r"gcn_label\.(\d+)\.(\d+)", r"head/blocks/\1/\2"),
    *linear(_PREFIX + r"ffn_label\.(\d+)\.0", r"head/widen/\1"),
    *linear(r"head\.(fc1|fc2)", r"head/\1"),
)
_LAST = Rule(r"prediction\.4\.weight", "classifier/fc2/kernel", "pointwise")
CLASSIFIER: tuple[Rule, ...] = (
    *linear_norm("prediction", "classifier/fc1"),
    *(_LAST, Rule(r"prediction\.4\.bias", "classifier/fc2/bias")),
)


def vig_table(depths: Sequence[int], family: str = "vig") -> Table:
    """The table of files whose stages have so many blocks; of ViG's, or "gkgnet"."""
    return Table(
        family=family,
        backbone=_trunk_rules(depths),
        head=(*LABELS, *CLASSIFIER),
        unused=r".*\.num_batches_tracked|.*\.relative_pos",
        kinds=("pvig",) if family == "gkgnet" else ("vig", "pvig"),
        options=(("groups", 2),) if family == "gkgnet" else (),
    )


def table_of(names: Collection[str]) -> Table | None:
    """The table of a file with these names; None if it is neither ViG's nor GKGNet's."""
    found = [match for match in map(_SEQUENCE.fullmatch, names) if match]
    depths = [0]
    for match in sorted(found, key=lambda match: int(match[1])):
        if match[2] == "conv":
            depths.append(0)
        else:
            depths[-1] += 1
    if not depths[0]:
        return None
    labelled = any(re.fullmatch(_PREFIX + r"label_lt\.weight", name) for name in names)
    return vig_table(depths, "gkgnet" if labelled else "vig")


def check_relative(arrays: Mapping[str, Any], allowed: Sequence[str] = ()) -> None:
    """Compares stored biases by relative position with those that a model computes.

    Args:
        allowed: patterns of names that may hold something else.

    Raises:
        WeightsError: one that is another.
    """
    for name, array in arrays.items():
        match = _RELATIVE.fullmatch(name)
        weight = arrays.get(f"{match[1]}fc1.0.weight") if match else None
        if weight is None or any(re.fullmatch(pattern, name) for pattern in allowed):
            continue
        away = _distance(np.asarray(array), np.shape(weight)[0])
        if not away <= _SAME:
            raise WeightsError(
                f"{name}: not the bias that a grid of this size has, but off by {away:.2g}; the "
                "file is damaged, or of a model that is none of those here. To pass over it, name "
                "it in allow_unexpected"
            )


def _distance(stored: np.ndarray, width: int) -> float:
    """The largest difference from the bias of a square grid; infinite where it cannot be one."""
    if stored.ndim != 3 or not stored.size:
        return math.inf
    n, m = stored.shape[1:]
    side, reduction = math.isqrt(n), math.isqrt(n // m)
    if width % 4 or stored.shape != (1, side**2, (side // max(reduction, 1)) ** 2):
        return math.inf
    offsets = table(width, side)
    rows, columns = map(np.asarray, PositionBias(offsets, offsets, reduction).factors())
    stored = stored.reshape(side, side, m)
    return float(np.max([np.abs(stored[i] - (rows[i] + columns)).max() for i in range(side)]))


FAMILY = Family(made=table_of, check=check_relative, rank=13)
