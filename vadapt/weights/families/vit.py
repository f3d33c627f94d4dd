"""Names of plain ViTs in Hugging Face's files: ViT, DeiT, DINO, and MAE with its decoder."""

from __future__ import annotations

from typing import Any

from vadapt.backbones.vit import ViT
from vadapt.weights.families.dinov2 import HUGGING_FACE_THIRDS
from vadapt.weights.tables import Family, Rule, Table, joined, linear, norm
from vadapt.weights.transformers_config import (
    QKV,
    TOKEN,
    VIT,
    WHOLE,
    Config,
    Form,
    defaults,
    has_qkv_bias,
    hidden_width,
    transformer_fields,
)


def _block_rules(source: str, target: str) -> tuple[Rule, ...]:
    """Names in files first; models of transformers 5 have others in memory."""
    name, path = rf"{source}\.(\d+)\.", rf"{target}/\1/"
    attn, mlp = path + "attn/inner/", path + "mlp/inner/"
    return (
        *norm(name + "layernorm_before", path + "attn/norm"),
        *joined([name + part for part in HUGGING_FACE_THIRDS], attn + "qkv"),
        *linear(name + r"attention\.(?:output\.dense|o_proj)", attn + "proj"),
        *norm(name + "layernorm_after", path + "mlp/norm"),
        *linear(name + r"(?:intermediate\.dense|mlp\.fc1)", mlp + "fc1"),
        *linear(name + r"(?:output\.dense|mlp\.fc2)", mlp + "fc2"),
    )


# The prefix is that of models with something on top, such as a classifier.
_PREFIX = r"(?:|vit\.|deit\.)"
_EMBEDDINGS = _PREFIX + r"embeddings\."

VIT_HF = Table(
    family="vit_hf",
    backbone=(
        Rule(_EMBEDDINGS + "cls_token", "cls_token", "vector"),
        Rule(_EMBEDDINGS + "position_embeddings", "pos_embed", "table"),
        Rule(
            _EMBEDDINGS + r"patch_embeddings\.projection\.weight",
            "patch_embed/proj/kernel",
            "conv",
        ),
        Rule(_EMBEDDINGS + r"patch_embeddings\.projection\.bias", "patch_embed/proj/bias"),
        *_block_rules(_PREFIX + r"(?:encoder\.layer|layers)", "blocks"),
        *norm(_PREFIX + "layernorm", "norm"),
    ),
    head=(
        *linear(r"decoder\.decoder_embed", "decoder/embed"),
        Rule(r"decoder\.mask_token", "decoder/mask_token", "vector"),
        Rule(r"decoder\.decoder_pos_embed", "decoder/pos_embed", "table"),
        *_block_rules(r"decoder\.(?:decoder_layers|decoder_encoder\.layer)", "decoder/blocks"),
        *norm(r"decoder\.decoder_norm", "decoder/norm"),
        *linear(r"decoder\.decoder_pred", "decoder/pred"),
    ),
    unused=_EMBEDDINGS + r"mask_token|" + _PREFIX + r"pooler\..*|(?:\w+_)?classifier\..*",
)


def _config(model: Any) -> Config:
    """Return the config of a model."""
    config = transformer_fields("ViTModel", "vit", model)
    return {**config, "intermediate_size": hidden_width(model), "qkv_bias": has_qkv_bias(model)}


def _mae_config(model: Any) -> Config:
    """Return the config of a model as the encoder of a MAE."""
    config = {**_config(model), "architectures": ["ViTMAEModel"], "model_type": "vit_mae"}
    return {**config, "mask_ratio": 0.0}


FORM = Form(ViT, "vit_.*", VIT_HF, _config, has=VIT | {TOKEN}, may={QKV, WHOLE})
# Its features are those of "vit", in an order of patches drawn anew in every call.
MAE_FORM = FORM._replace(names="", config=_mae_config)
FAMILY = Family(
    (VIT_HF,),
    rank=2,
    forms={"vit": FORM, "vit_mae": MAE_FORM},
    configs=dict.fromkeys(("vit", "deit", "vit_mae"), defaults(epsilon=1e-12))
    | {"vit_msn": defaults()},
)
