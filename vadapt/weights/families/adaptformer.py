"""Names of AdaptFormer's files: timm's ViT, with queries, keys and values apart and no `mlp`."""

from __future__ import annotations

from vadapt.weights.families.mae import trunk_rules
from vadapt.weights.tables import Family, Table, joined, linear

_BLOCK = r"blocks\.(\d+)\."

ADAPTFORMER = Table(
    family="adaptformer",
    kinds=("vit",),
    backbone=(
        *joined([rf"{_BLOCK}attn\.{part}_proj" for part in "qkv"], r"blocks/\1/attn/inner/qkv"),
        *linear(_BLOCK + r"(fc1|fc2)", r"blocks/\1/mlp/inner/\2"),
        *trunk_rules(),
    ),
    unused=r"(?:head|fc_norm)\..*",
)

# After the MAE files of which it knows every name, too.
FAMILY = Family((ADAPTFORMER,), rank=13)
