"""Names of the official MAE, MILAN and PAD checkpoints: timm's ViT names, adapters, decoders.

A plain ViT under timm's names, such as DINO's, is a file without adapters and without a decoder.
"""

from __future__ import annotations

from vadapt.weights.tables import Rule, Table


def block_rules(source: str, target: str) -> tuple[Rule, ...]:
    """Rules of one stack of timm blocks with PAD's grafts; both arguments name the stack."""
    name, path = rf"{source}\.(\d+)\.", rf"{target}/\1/"
    return (
        Rule(name + r"norm1\.weight", path + "attn/norm/scale"),
        Rule(name + r"norm1\.bias", path + "attn/norm/bias"),
        Rule(name + r"attn\.(qkv|q|kv|proj)\.weight", path + r"attn/inner/\2/kernel", "linear"),
        Rule(name + r"attn\.(qkv|q|kv|proj)\.bias", path + r"attn/inner/\2/bias"),
        Rule(name + r"norm2\.weight", path + "mlp/norm/scale"),
        Rule(name + r"norm2\.bias", path + "mlp/norm/bias"),
        Rule(name + r"mlp\.(fc1|fc2)\.weight", path + r"mlp/inner/\2/kernel", "linear"),
        Rule(name + r"mlp\.(fc1|fc2)\.bias", path + r"mlp/inner/\2/bias"),
        Rule(name + r"(?:gamma_1|ls1\.gamma)", path + "attn/scale/gamma"),
        Rule(name + r"(?:gamma_2|ls2\.gamma)", path + "mlp/scale/gamma"),
        Rule(
            name + r"adaptmlp\.adapter_layer_norm_before\.weight", path + "mlp/adapter/norm/scale"
        ),
        Rule(name + r"adaptmlp\.adapter_layer_norm_before\.bias", path + "mlp/adapter/norm/bias"),
        Rule(name + r"adaptmlp\.(down|up)_proj\.weight", path + r"mlp/adapter/\2/kernel", "linear"),
        Rule(name + r"adaptmlp\.(down|up)_proj\.bias", path + r"mlp/adapter/\2/bias"),
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
        Rule(prefix + r"norm\.weight", "norm/scale"),
        Rule(prefix + r"norm\.bias", "norm/bias"),
    )


MAE = Table(
    family="mae",
    backbone=trunk_rules(),
    head=(
        Rule(r"decoder_embed\.weight", "decoder/embed/kernel", "linear"),
        Rule(r"decoder_embed\.bias", "decoder/embed/bias"),
        Rule("mask_token", "decoder/mask_token", "vector"),
        Rule("decoder_pos_embed", "decoder/pos_embed", "table"),
        *block_rules("decoder_blocks", "decoder/blocks"),
        Rule(r"decoder_norm\.weight", "decoder/norm/scale"),
        Rule(r"decoder_norm\.bias", "decoder/norm/bias"),
        Rule(r"decoder_pred\.weight", "decoder/pred/kernel", "linear"),
        Rule(r"decoder_pred\.bias", "decoder/pred/bias"),
    ),
)
