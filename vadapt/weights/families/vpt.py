"""Names of VPT's files: a ViT under names of its own, the Pfeiffer adapter, and prompts.

Prompts may stand beside any backbone's names; their paths are those of `vadapt.adapters.vpt`.
Classifiers are passed over.
"""

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


def with_prompts(table: Table) -> Table:
    """A family's table for files that hold its trunk and prompts together."""
    prefix = _TRUNK if table.family == VPT.family else r"(?:|enc\.)"
    deep = Rule(prefix + "deep_prompt_embeddings", "vpt/deep/0")
    if table.is_of("swin_"):
        deep = Rule(prefix + r"deep_prompt_embeddings_(\d+)", r"vpt/deep/\1")
    prompts = (
        Rule(prefix + "prompt_embeddings", "vpt/prompts", "table"),
        deep,
        *linear(prefix + "prompt_proj", "vpt/proj"),
    )
    return table._replace(backbone=table.backbone + prompts)


FAMILY = Family((VPT,), rank=14, beside=with_prompts)
