"""Names of DINOv3's ViTs in Hugging Face's files."""

from __future__ import annotations

from typing import Any

from vadapt.backbones.vit import ViT
from vadapt.weights.tables import Family, Rule, Table, joined, linear, norm
from vadapt.weights.transformers_config import (
    BIASES,
    COMMON,
    DINO,
    GRID,
    TOKEN,
    WHOLE,
    Config,
    Form,
    defaults,
    hidden_width,
    is_gated,
    last_layer,
    transformer_fields,
)

# Models in memory have it, files do not.
_PREFIX = r"(?:|model\.)"


def _block_rules(gated: bool) -> tuple[Rule, ...]:
    name, path = _PREFIX + r"layer\.(\d+)\.", r"blocks/\1/"
    attn, mlp = path + "attn/inner/", path + "mlp/inner/"
    thirds = [name + rf"attention\.{part}_proj" for part in "qkv"]
    up, down = name + r"mlp\.up_proj", name + r"mlp\.down_proj"
    plain = (*linear(up, mlp + "fc1"), *linear(down, mlp + "fc2"))
    gate = (*joined([name + r"mlp\.gate_proj", up], mlp + "w12"), *linear(down, mlp + "w3"))
    return (
        *norm(name + "norm1", path + "attn/norm"),
        # Keys have no bias.
        Rule(thirds[0] + r"\.bias", attn + "q_bias"),
        Rule(thirds[2] + r"\.bias", attn + "v_bias"),
        *joined(thirds, attn + "qkv"),
        *linear(name + r"attention\.o_proj", attn + "proj"),
        Rule(name + r"layer_scale1\.lambda1", path + "attn/scale/gamma"),
        *norm(name + "norm2", path + "mlp/norm"),
        *(gate if gated else plain),
        Rule(name + r"layer_scale2\.lambda1", path + "mlp/scale/gamma"),
    )


def _table(family: str, gated: bool) -> Table:
    return Table(
        family=family,
        backbone=(
            Rule(r"embeddings\.cls_token", "cls_token", "vector"),
            Rule(r"embeddings\.register_tokens", "registers", "table"),
            Rule(r"embeddings\.patch_embeddings\.weight", "patch_embed/proj/kernel", "conv"),
            Rule(r"embeddings\.patch_embeddings\.bias", "patch_embed/proj/bias"),
            *_block_rules(gated),
            *norm("norm", "norm"),
        ),
        unused=r"embeddings\.mask_token",
    )


DINOV3_HF = _table("dinov3_hf", gated=False)
DINOV3_HF_GATED = _table("dinov3_hf_gated", gated=True)  # the largest


def _config(model: Any) -> Config:
    """Return the config of a model."""
    attn = model.blocks[0].attn.inner
    return {
        **transformer_fields("DINOv3ViTModel", "dinov3_vit", model),
        "intermediate_size": hidden_width(model),
        "num_register_tokens": model.num_extra - 1,
        "query_bias": attn.q_bias is not None,
        "key_bias": False,
        "value_bias": attn.v_bias is not None,
        "proj_bias": attn.proj.bias is not None,
        "mlp_bias": last_layer(model).bias is not None,
        "use_gated_mlp": is_gated(model),
    }


# Its plain and its gated models differ in names of one layer.
_EITHER = DINOV3_HF._replace(backbone=DINOV3_HF.backbone + DINOV3_HF_GATED.backbone)
FORM = Form(
    *(ViT, "dinov3_.*", _EITHER, _config),
    has=COMMON | {TOKEN, "layer scale", "rotary positions of halves"},
    may=DINO | BIASES | GRID | {WHOLE, "bias of queries and values alone"},
)
FAMILY = Family(
    (DINOV3_HF, DINOV3_HF_GATED),
    rank=6,
    forms={"dinov3": FORM},
    configs={"dinov3_vit": defaults(epsilon=1e-5, heads=6, rope_theta=100.0)},
)
