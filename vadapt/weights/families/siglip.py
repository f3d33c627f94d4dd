"""Names of SigLIP's visual tower in Hugging Face's files.

Its pooling head and the text tower find no place: what features come from is the trunk.
"""

from typing import Any

from vadapt.backbones.vit import ViT
from vadapt.weights.families.clip import VISION, hugging_face_block_rules
from vadapt.weights.tables import Family, Rule, Table, norm
from vadapt.weights.transformers_config import (
    QKV,
    VIT,
    WHOLE,
    Config,
    Form,
    defaults,
    hidden_width,
    transformer_fields,
)

SIGLIP_HF = Table(
    family="siglip_hf",
    backbone=(
        Rule(VISION + r"embeddings\.position_embedding\.weight", "pos_embed"),
        Rule(VISION + r"embeddings\.patch_embedding\.weight", "patch_embed/proj/kernel", "conv"),
        Rule(VISION + r"embeddings\.patch_embedding\.bias", "patch_embed/proj/bias"),
        *hugging_face_block_rules(),
        *norm(VISION + r"post_layernorm", "norm"),
    ),
    unused=VISION + r"head\..*|" + VISION + r"embeddings\.position_ids"
    r"|text_model\..*|logit_scale|logit_bias",
)


def _config(model: Any) -> Config:
    """Return the config of a model."""
    config = transformer_fields("SiglipVisionModel", "siglip_vision_model", model)
    return {**config, "intermediate_size": hidden_width(model), "vision_use_head": False}


FORM = Form(ViT, "siglip_.*", SIGLIP_HF, _config, has=VIT | {QKV}, may={WHOLE})
FAMILY = Family(
    (SIGLIP_HF,),
    rank=4,
    forms={"siglip": FORM},
    configs={"siglip_vision_model": defaults("gelu_pytorch_tanh")},
)
