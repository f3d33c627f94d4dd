"""Names of VPT's files: a ViT under names of its own, and the Pfeiffer adapter."""

from __future__ import annotations

from vadapt.weights.tables import Family, Rule, Table, conv, joined, linear, norm

_TRUNK = r"(?:enc\.|)transformer\."
_LAYER = _TRUNK + r"encoder\.layer\.(\d+)\."
_ATTN, _MLP = r"blocks/\1/attn/", r"blocks/\1/mlp/"

VPT = Table(
    family="vpt",
    kinds=("vit",),
    backbone=(
        Rule(_TRUNK + r"embeddings\.cls_token", "cls_token", "vector"),
        Rule(_TRUNK + r"embeddings\.position_embeddings", "pos_embed", "table"),
        *conv(_TRUNK + r"embeddings\.patch_embeddings", "patch_embed/proj"),
        *norm(_LAYER + "attention_norm", _ATTN + "norm"),
        *joined(
            [rf"{_LAYER}attn\.{part}" for part in ("query", "key", "value")], _ATTN + "inner/qkv"
        ),
        *linear(_LAYER + r"attn\.out", _ATTN + "inner/proj"),
        *norm(_LAYER + "ffn_norm", _MLP + "norm"),
        *linear(_LAYER + r"ffn\.(fc1|fc2)", _MLP + r"inner/\2"),
        *linear(_LAYER + "adapter_(down|up)sample", _MLP + r"inner/fc2/adapter/\2"),
        *norm(_TRUNK + r"encoder\.encoder_norm", "norm"),
    ),
    unused=r"head\..*",
)

FAMILY = Family((VPT,), rank=14)
