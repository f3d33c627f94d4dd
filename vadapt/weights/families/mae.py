"""Names of the official MAE, MILAN and PAD checkpoints: timm's ViT names, adapters, decoders.

A plain ViT under timm's names, such as DINO's, is a file without adapters and without a decoder.
"""

from __future__ import annotations

from vadapt.weights.tables import Family, Rule, Table, linear, norm


def block_rules(source: str, target: str) -> tuple[Rule, ...]:
    """Rules of one stack of timm blocks with PAD's adapters; both arguments name the stack."""
    name, path = rf"{source}\.(\d+)\.", rf"{target}/\1/"
    return (
        *norm(name + r"norm1", path + "attn/norm"),
        *linear(name + r"attn\.(qkv|q|kv|proj)", path + r"attn/inner/\2"),
        Rule(name + r"attn\.relative_position_bias_table", path + "attn/inner/relative/table"),
        Rule(name + r"attn\.(rel_pos_h|rel_pos_w)", path + r"attn/inner/\2"),  # of ViTDet
        *norm(name + r"norm2", path + "mlp/norm"),
        *linear(name + r"mlp\.(fc1|fc2)", path + r"mlp/inner/\2"),
        Rule(name + r"(?:gamma_1|ls1\.gamma)", path + "attn/scale/gamma"),
        Rule(name + r"(?:gamma_2|ls2\.gamma)", path + "mlp/scale/gamma"),
        *norm(name + r"adaptmlp\.adapter_layer_norm_before", path + "mlp/adapter/norm"),
        *linear(name + r"adaptmlp\.(down|up)_proj", path + r"mlp/adapter/\2"),
        Rule(name + r"adaptmlp\.scale", path + "mlp/gate/scale"),
        Rule(name + r"scalar_pred\.weight", path + "mlp/gate/proj/kernel", "linear"),
    )


def trunk_rules(prefix: str = "") -> tuple[Rule, ...]:
    """Rules of a whole timm ViT; `prefix` is a pattern of what stands before each name."""
    return (
        Rule(prefix + "cls_token", "cls_token", "vector"),
        Rule(prefix + "pos_embed", "pos_embed", "table"),
        Rule(prefix + r"patch_embed\.proj\.weight", "patch_embed/proj/kernel", "conv"),
        Rule(prefix + r"patch_embed\.proj\.bias", "patch_embed/proj/bias"),
        *block_rules(prefix + "blocks", "blocks"),
        # One for all blocks; what modules share has its path in the first of them.
        Rule(
            prefix + r"rel_pos_bias\.relative_position_bias_table",
            "blocks/0/attn/inner/shared_relative/table",
        ),
        *norm(prefix + r"norm", "norm"),
    )


MAE = Table(
    family="mae",
    kinds=("vit",),
    backbone=trunk_rules(),
    head=(
        *linear(r"decoder_embed", "decoder/embed"),
        Rule("mask_token", "decoder/mask_token", "vector"),
        Rule("decoder_pos_embed", "decoder/pos_embed", "table"),
        *block_rules("decoder_blocks", "decoder/blocks"),
        *norm(r"decoder_norm", "decoder/norm"),
        *linear(r"decoder_pred", "decoder/pred"),
    ),
)

FAMILY = Family((MAE,), rank=1)
