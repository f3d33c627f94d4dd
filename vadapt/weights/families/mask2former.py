"""Names of Mask2Former's head in mmsegmentation's files, with Rein's queries or its own."""

from __future__ import annotations

from vadapt.weights.tables import Rule, conv, linear, norm

_HEAD = r"decode_head\."
_PIXELS, _QUERIES = _HEAD + r"pixel_decoder\.", _HEAD + r"transformer_decoder\."
_ENCODER, _DECODER = _PIXELS + r"encoder\.layers\.(\d+)\.", _QUERIES + r"layers\.(\d+)\."


def _normed_conv(source: str, target: str) -> tuple[Rule, ...]:
    return *conv(source + r"\.conv", target + "/conv"), *norm(source + r"\.gn", target + "/norm")


def _feed_forward(source: str, target: str) -> tuple[Rule, ...]:
    return (
        *linear(source + r"ffn\.layers\.0\.0", target + "/mlp/fc1"),
        *linear(source + r"ffn\.layers\.1", target + "/mlp/fc2"),
    )


def _attention(name: str) -> tuple[Rule, ...]:
    source, target = _DECODER + name + r"\.attn\.", rf"head/layers/\1/{name}/"
    return (
        Rule(source + "in_proj_weight", target + "in_proj/kernel", "linear"),
        Rule(source + "in_proj_bias", target + "in_proj/bias"),
        *linear(source + "out_proj", target + "out_proj"),
    )


# Paths of `vadapt.heads.mask2former`, as a model's `head`.
MASK2FORMER: tuple[Rule, ...] = (
    *_normed_conv(_PIXELS + r"input_convs\.(\d+)", r"head/pixel_decoder/input_convs/\1"),
    Rule(_PIXELS + r"level_encoding\.weight", "head/pixel_decoder/level_encoding"),
    *(
        rule
        for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        for rule in linear(
            _ENCODER + r"self_attn\." + name, rf"head/pixel_decoder/layers/\1/attn/{name}"
        )
    ),
    *_feed_forward(_ENCODER, r"head/pixel_decoder/layers/\1"),
    *norm(_ENCODER + r"norms\.(\d+)", r"head/pixel_decoder/layers/\1/norms/\2"),
    *_normed_conv(_PIXELS + r"lateral_convs\.0", "head/pixel_decoder/lateral"),
    *_normed_conv(_PIXELS + r"output_convs\.0", "head/pixel_decoder/output"),
    *conv(_PIXELS + "mask_feature", "head/pixel_decoder/mask_feature"),
    *_attention("cross_attn"),
    *_attention("self_attn"),
    *_feed_forward(_DECODER, r"head/layers/\1"),
    *norm(_DECODER + r"norms\.(\d+)", r"head/layers/\1/norms/\2"),
    *norm(_QUERIES + "post_norm", "head/post_norm"),
    *(
        Rule(_HEAD + name + r"\.weight", f"head/{name}")
        for name in ("level_embed", "query_embed", "query_feat")
    ),
    *linear(_HEAD + "querys2feat", "head/queries_to_feat"),
    *linear(_HEAD + "cls_embed", "head/cls_embed"),
    *(
        rule
        for i in range(3)  # between them stand two without weights
        for rule in linear(_HEAD + rf"mask_embed\.{2 * i}", f"head/mask_embed/{i}")
    ),
)
