"""Names of the necks of detectors' files: CFPT's, mmdetection's FPN, ViTDet's simple pyramid.

Paths are those of `vadapt.necks.cfpt`, `vadapt.necks.fpn` and
`vadapt.necks.simple_feature_pyramid` as a model's `neck`. Backbones lie beside, under their own
names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vadapt.errors import WeightsError
from vadapt.kernels.cross_layer_attention import channel_windows, ratios, spatial_windows
from vadapt.necks.cross_layer import index
from vadapt.weights.tables import Family, Rule, Table, batch_norm, conv, linear, norm

_NECK = r"neck\."
_KINDS = ("channel", "spatial")


def _conv_norm(source: str, target: str) -> tuple[Rule, ...]:
    return *conv(source + r"\.conv", target + "/conv"), *batch_norm(
        source + r"\.bn", target + "/norm"
    )


def _pointwise(source: str, target: str) -> tuple[Rule, Rule]:
    """A 1x1 convolution there, a linear layer here."""
    weight, bias = linear(source, target)
    return weight._replace(layout="pointwise"), bias


def block_rules(source: str, target: str, *, spatial: bool) -> tuple[Rule, ...]:
    """Rules of a `CrossLayerBlock`; names and paths with what ends them before the block's own.

    Tables of channels have rows there for offsets in two dimensions, and are lines here.
    """
    bias = source + r"pos_embed\."
    table = Rule(bias + "relative_position_bias_table", target + "bias/table")
    level = target + r"levels/\1/"
    return (
        *conv(source + r"cpe\.(\d+)\.(\d+)\.proj", level + r"positions/\2/conv"),
        *_pointwise(source + r"qkv\.(\d+)", level + "qkv"),
        *_pointwise(source + r"proj\.(\d+)", level + "proj"),
        *norm(source + r"norm1\.(\d+)\.norm", level + "norms/0"),
        *norm(source + r"norm2\.(\d+)", level + "norms/1"),
        *linear(source + r"mlp\.(\d+)\.(fc1|fc2)", level + r"mlp/\2"),
        table if spatial else table._replace(layout="line"),
        Rule(bias + "absolute_position_bias", target + "bias/levels", "levels"),
    )


CFPT: tuple[Rule, ...] = (
    *(
        rule
        for i in range(4)
        for rule in (
            *_conv_norm(_NECK + f"conv{i + 2}", f"neck/inputs/{i}"),
            *_conv_norm(_NECK + f"extra_conv{i + 1}", f"neck/extra/{i}"),
        )
    ),
    *(
        rule
        for kind in _KINDS
        for rule in block_rules(
            _NECK + rf"cross_layer_{kind}_attn\.",
            f"neck/pairs/0/{kind}/",
            spatial=kind == "spatial",
        )
    ),
)

# Those that follow the levels' own are extra ones.
FPN: tuple[Rule, ...] = (
    *conv(_NECK + r"lateral_convs\.(\d+)\.conv", r"neck/laterals/\1"),
    *conv(_NECK + r"fpn_convs\.(\d+)\.conv", r"neck/outputs/\1"),
)


def _simple(
    level: int, grow: Sequence[int], norms: Sequence[int], convs: Sequence[int]
) -> tuple[Rule, ...]:
    """Rules of a level by the numbers of its layers."""
    source, target = rf"(?:backbone\.|)simfp_{level}\.", f"neck/levels/p{level}/"
    found: list[Rule] = []
    for i, number in enumerate(grow):
        found += conv(f"{source}{number}", f"{target}grow/{i}")
    for i, number in enumerate(norms):
        found += norm(f"{source}{number}", f"{target}norms/{i}")
    for part, number in zip(("lateral", "output"), convs, strict=True):
        found.append(conv(f"{source}{number}", f"{target}{part}/conv")[0])
        found += norm(rf"{source}{number}\.norm", f"{target}{part}/norm")
    return tuple(found)


SIMPLE_PYRAMID: tuple[Rule, ...] = (
    *_simple(2, (0, 3), (1,), (4, 5)),
    *_simple(3, (0,), (), (1, 2)),
    *_simple(4, (), (), (0, 1)),
    *_simple(5, (), (), (1, 2)),
)

TABLE = Table(
    family="detection_necks",
    backbone=(),
    head=(*CFPT, *FPN, *SIMPLE_PYRAMID),
    # Indices are computed here.
    unused=_NECK + r".*\.(?:relative_position_index|num_batches_tracked)",
)


def with_neck(table: Table) -> Table:
    """A family's table for files that hold its backbone and a neck."""
    return table._replace(
        head=table.head + TABLE.head, unused="|".join(filter(None, (table.unused, TABLE.unused)))
    )


_INDEX = re.compile(
    r"(.*cross_layer_(channel|spatial)_attn\.pos_embed\.)relative_position_index(.*)"
)


def check(arrays: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Refuse indices of relative positions that are not those that are computed here.

    Raises:
        WeightsError: an index differs.
    """
    for name, array in arrays.items():
        found = _INDEX.fullmatch(name)
        if found is None or any(re.fullmatch(pattern, name) for pattern in allowed):
            continue
        prefix, kind, suffix = found.groups()
        table = arrays.get(f"{prefix}relative_position_bias_table{suffix}")
        levels = arrays.get(f"{prefix}absolute_position_bias{suffix}")
        if table is None or levels is None:
            continue
        expected = _computed(table.shape[0], levels.shape[0], spatial=kind == "spatial")
        value = np.asarray(array, np.float64)
        if value.shape != expected.shape or np.abs(value - expected).max() > 1e-2:
            raise WeightsError(
                f"{name} is another index than that of windows which overlap by the same number on "
                f"all of {levels.shape[0]} levels; attention here would read other biases"
            )


def _computed(rows: int, levels: int, *, spatial: bool) -> np.ndarray:
    """The index that belongs to a table of so many rows."""
    first, ratio = (math.isqrt(rows) + 1) // 2, ratios(levels)[0]
    if spatial:
        return index(spatial_windows(levels, first - ratio), spatial)
    return index(channel_windows(levels, first - ratio**2), spatial)


FAMILY = Family((TABLE,), rank=0, whole=True, beside=with_neck, check=check)
