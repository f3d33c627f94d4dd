"""Names of DINOv2 checkpoints: the official ones and Hugging Face's, with registers or without.

`mask_token`, which masked pre-training had a use for, is passed over by an import and absent from
an export.
"""

from __future__ import annotations

from typing import Any

from vadapt.backbones.vit import ViT
from vadapt.weights.families.mae import block_rules, trunk_rules
from vadapt.weights.tables import Family, Rule, Table, joined, linear, norm
from vadapt.weights.transformers_config import (
    DINO,
    QKV,
    TOKEN,
    VIT,
    WHOLE,
    Config,
    Form,
    defaults,
    has_qkv_bias,
    is_gated,
    mlp_ratio,
    transformer_fields,
)

# Training files number the chunk before the block: `blocks.0.3.` is `blocks.3.` of the released.
_BLOCK = r"blocks(?:|\.\d+)\.(\d+)\."

DINOV2 = Table(
    family="dinov2",
    backbone=(
        # Before the trunk's rules, which know both names and would write `gamma_1`.
        Rule(_BLOCK + r"ls1\.gamma", r"blocks/\1/attn/scale/gamma"),
        Rule(_BLOCK + r"ls2\.gamma", r"blocks/\1/mlp/scale/gamma"),
        *linear(_BLOCK + r"mlp\.(w12|w3)", r"blocks/\1/mlp/inner/\2"),
        # timm writes `reg_token`.
        Rule("(?:register_tokens|reg_token)", "registers", "table"),
        *trunk_rules(),
        *block_rules(r"blocks\.\d+", "blocks"),
    ),
    unused="mask_token",
)


# Of the names in files and in memory.
HUGGING_FACE_THIRDS = (
    r"attention\.(?:attention\.query|q_proj)",
    r"attention\.(?:attention\.key|k_proj)",
    r"attention\.(?:attention\.value|v_proj)",
)


def _hugging_face_block_rules(prefix: str) -> tuple[Rule, ...]:
    """Names in files first; models of transformers 5 have others in memory."""
    name, path = prefix + r"encoder\.layer\.(\d+)\.", r"blocks/\1/"
    attn, mlp = path + "attn/inner/", path + "mlp/inner/"

    return (
        *norm(name + r"norm1", path + "attn/norm"),
        *joined([name + part for part in HUGGING_FACE_THIRDS], attn + "qkv"),
        *linear(name + r"attention\.(?:output\.dense|o_proj)", attn + "proj"),
        Rule(name + r"layer_scale1\.lambda1", path + "attn/scale/gamma"),
        *norm(name + r"norm2", path + "mlp/norm"),
        *linear(name + r"mlp\.(fc1|fc2)", mlp + r"\2"),
        *linear(name + r"mlp\.weights_in", mlp + "w12"),
        *joined([name + r"mlp\.gate_proj", name + r"mlp\.up_proj"], mlp + "w12"),
        *linear(name + r"mlp\.(?:weights_out|down_proj)", mlp + "w3"),
        Rule(name + r"layer_scale2\.lambda1", path + "mlp/scale/gamma"),
    )


def _hugging_face_rules(prefix: str) -> tuple[Rule, ...]:
    name = prefix + r"embeddings\."
    patches = name + r"patch_embeddings\.projection\."
    return (
        Rule(name + "cls_token", "cls_token", "vector"),
        Rule(name + "register_tokens", "registers", "table"),
        Rule(name + "position_embeddings", "pos_embed", "table"),
        Rule(patches + "weight", "patch_embed/proj/kernel", "conv"),
        Rule(patches + "bias", "patch_embed/proj/bias"),
        *_hugging_face_block_rules(prefix),
        *norm(prefix + r"layernorm", "norm"),
    )


# The prefix is that of models with something on top, such as a classifier.
_PREFIX = r"(?:|dinov2\.|dinov2_with_registers\.)"
DINOV2_HF = Table(
    family="dinov2_hf",
    backbone=_hugging_face_rules(_PREFIX),
    unused=_PREFIX + r"embeddings\.mask_token",
)


def _config(model: Any) -> Config:
    """Return the config of a model."""
    config = {
        **transformer_fields("Dinov2Model", "dinov2", model),
        "mlp_ratio": mlp_ratio(model),
        "qkv_bias": has_qkv_bias(model),
        "use_swiglu_ffn": is_gated(model),
        "use_mask_token": False,
    }
    if model.registers is None:
        return config
    return {
        **config,
        "architectures": ["Dinov2WithRegistersModel"],
        "model_type": "dinov2_with_registers",
        "num_register_tokens": model.registers.shape[0],
    }


FORM = Form(
    *(ViT, "dinov2_.*", DINOV2_HF, _config),
    has=VIT | {TOKEN, WHOLE, "layer scale"},
    may=DINO | {QKV},
)
FAMILY = Family(
    (DINOV2, DINOV2_HF),
    rank=5,
    forms={"dinov2": FORM},
    configs=dict.fromkeys(("dinov2", "dinov2_with_registers"), defaults()),
)
