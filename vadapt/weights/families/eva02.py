"""Names of the official EVA-02 checkpoints."""

from __future__ import annotations

from vadapt.weights.families.mae import trunk_rules
from vadapt.weights.tables import Family, Rule, Table, joined, linear, norm

_BLOCK = r"blocks\.(\d+)\."
_ATTN, _MLP = r"blocks/\1/attn/inner/", r"blocks/\1/mlp/inner/"

EVA02 = Table(
    family="eva02",
    backbone=(
        *joined([_BLOCK + rf"attn\.{part}_proj" for part in "qkv"], _ATTN + "qkv"),
        Rule(_BLOCK + r"attn\.(q|v)_bias", _ATTN + r"\2_bias"),
        *joined([_BLOCK + r"mlp\.w1", _BLOCK + r"mlp\.w2"], _MLP + "w12"),
        *linear(_BLOCK + r"mlp\.w3", _MLP + "w3"),
        *norm(_BLOCK + r"mlp\.ffn_ln", _MLP + "norm"),
        *trunk_rules(),
    ),
    # Tables that are computed here, and what pre-training and classification had a use for.
    unused=r"(?:.*\.)?rope\..*|(?:.*\.)?relative_position_index|mask_token"
    r"|(?:lm_head|fc_norm|head)\..*",
)

FAMILY = Family((EVA02,), rank=7)
