"""Names of the visual towers in CLIP's and SLIP's checkpoints, and in Hugging Face's of CLIP.

Their text towers find no place.

Paths are those of `vadapt.backbones.teachers.Tower`: a backbone, and `proj` beside it.
"""

from __future__ import annotations

from typing import Any

from vadapt.backbones.vit import ViT
from vadapt.weights.families.mae import trunk_rules
from vadapt.weights.tables import Family, Rule, Table, joined, linear, norm
from vadapt.weights.transformers_config import (
    QKV,
    TOKEN,
    VIT,
    WHOLE,
    Config,
    Form,
    defaults,
    hidden_width,
    transformer_fields,
)


def _block_rules(prefix: str) -> tuple[Rule, ...]:
    name, path = prefix + r"transformer\.resblocks\.(\d+)\.", r"blocks/\1/"
    attn, mlp = path + "attn/inner/", path + "mlp/inner/"
    return (
        *norm(name + r"ln_1", path + "attn/norm"),
        # Query, key and value thirds, head-major inside each: the rows of timm's `qkv`.
        Rule(name + r"attn\.in_proj_weight", attn + "qkv/kernel", "linear"),
        Rule(name + r"attn\.in_proj_bias", attn + "qkv/bias"),
        *linear(name + r"attn\.out_proj", attn + "proj"),
        *norm(name + r"ln_2", path + "mlp/norm"),
        *linear(name + r"mlp\.c_fc", mlp + "fc1"),
        *linear(name + r"mlp\.c_proj", mlp + "fc2"),
    )


def _official(family: str, prefix: str, unused: str = "") -> Table:
    return Table(
        family=family,
        backbone=(
            Rule(prefix + "class_embedding", "cls_token"),
            Rule(prefix + "positional_embedding", "pos_embed"),
            Rule(prefix + r"conv1\.weight", "patch_embed/proj/kernel", "conv"),
            *norm(prefix + r"ln_pre", "first_norm"),
            *_block_rules(prefix),
            *norm(prefix + r"ln_post", "norm"),
        ),
        head=(Rule(prefix + "proj", "proj"),),  # used as tokens @ proj, so not transposed
        unused=unused,
    )


_TEXT = (
    r"(?:transformer|token_embedding|ln_final)\..*|positional_embedding|text_projection"
    r"|logit_scale|input_resolution|context_length|vocab_size"
)
CLIP = _official("clip", r"visual\.", unused=_TEXT)
# A file of the tower alone, as dense uses of CLIP have it.
CLIP_TOWER = _official("clip_tower", "")

# Models of the tower alone have the names without the prefix in memory, and in files.
VISION = r"(?:vision_model\.|)"


def hugging_face_block_rules() -> tuple[Rule, ...]:
    """Rules of the blocks of CLIP's and SigLIP's towers."""
    name, path = VISION + r"encoder\.layers\.(\d+)\.", r"blocks/\1/"
    attn, mlp = path + "attn/inner/", path + "mlp/inner/"
    return (
        *norm(name + r"layer_norm1", path + "attn/norm"),
        *joined([name + rf"self_attn\.{part}_proj" for part in "qkv"], attn + "qkv"),
        *linear(name + r"self_attn\.out_proj", attn + "proj"),
        *norm(name + r"layer_norm2", path + "mlp/norm"),
        *linear(name + r"mlp\.(fc1|fc2)", mlp + r"\2"),
    )


CLIP_HF = Table(
    family="clip_hf",
    backbone=(
        Rule(VISION + r"embeddings\.class_embedding", "cls_token"),
        Rule(VISION + r"embeddings\.position_embedding\.weight", "pos_embed"),
        Rule(VISION + r"embeddings\.patch_embedding\.weight", "patch_embed/proj/kernel", "conv"),
        *norm(VISION + r"pre_layrnorm", "first_norm"),  # spelt like this
        *hugging_face_block_rules(),
        *norm(VISION + r"post_layernorm", "norm"),
    ),
    head=(Rule(r"visual_projection\.weight", "proj", "linear"),),
    # The numbers 0, 1, 2, ... in older files, and the text tower.
    unused=VISION + r"embeddings\.position_ids|text_model\..*|text_projection\..*|logit_scale",
)

SLIP = Table(
    family="slip",
    kinds=("vit",),
    backbone=trunk_rules(r"(?:visual|module\.visual)\."),
    head=(Rule("(?:image_projection|module.image_projection)", "proj"),),
)


def _config(model: Any) -> Config:
    """Return the config of a model."""
    config = transformer_fields("CLIPVisionModel", "clip_vision_model", model)
    return {**config, "intermediate_size": hidden_width(model)}


FORM = Form(
    *(ViT, "clip_.*", CLIP_HF, _config),
    has=VIT - {"bias of patches"} | {TOKEN, QKV, "first norm"},
    may={WHOLE},
)
FAMILY = Family(
    (CLIP, CLIP_TOWER, CLIP_HF, SLIP),
    rank=3,
    forms={"clip": FORM},
    configs={"clip_vision_model": defaults("quick_gelu", 1e-5)},
)
