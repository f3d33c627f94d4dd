"""Names of SAM's image encoder: in official checkpoints, alone, and in Hugging Face's models.

What SAM has besides, the encoder of prompts and the decoder of masks, is passed over by an import.
"""

from __future__ import annotations

from typing import Any

from vadapt.backbones.sam import SAMEncoder
from vadapt.weights.tables import Family, Rule, Table, linear, norm
from vadapt.weights.transformers_config import (
    GRID,
    Config,
    Form,
    defaults,
    has_qkv_bias,
    hidden_width,
    transformer_fields,
)


def _rules(
    patches: str, block: str, norms: str, neck: tuple[str, str, str, str], prefix: str
) -> tuple[Rule, ...]:
    """The encoder's rules from what the two sets of names differ in."""
    name, path = prefix + block + r"\.(\d+)\.", r"blocks/\1/"
    conv1, norm1, conv2, norm2 = (prefix + r"neck\." + part for part in neck)
    return (
        Rule(prefix + "pos_embed", "pos_embed", "grid"),
        Rule(prefix + rf"patch_embed\.{patches}\.weight", "patch_embed/proj/kernel", "conv"),
        Rule(prefix + rf"patch_embed\.{patches}\.bias", "patch_embed/proj/bias"),
        *norm(name + norms + "1", path + "attn/norm"),
        *linear(name + r"attn\.(qkv|proj)", path + r"attn/inner/\2"),
        Rule(name + r"attn\.(rel_pos_h|rel_pos_w)", path + r"attn/inner/\2"),
        *norm(name + norms + "2", path + "mlp/norm"),
        *linear(name + r"mlp\.lin1", path + "mlp/inner/fc1"),
        *linear(name + r"mlp\.lin2", path + "mlp/inner/fc2"),
        Rule(conv1 + r"\.weight", "neck/conv1/kernel", "conv"),
        *norm(norm1, "neck/norm1"),
        Rule(conv2 + r"\.weight", "neck/conv2/kernel", "conv"),
        *norm(norm2, "neck/norm2"),
    )


_OTHERS = r"(?:prompt_encoder|mask_decoder|shared_image_embedding)\..*"

SAM = Table(
    family="sam",
    # Encoders alone, such as Rein's, have no prefix.
    backbone=_rules("proj", "blocks", "norm", ("0", "1", "2", "3"), r"(?:image_encoder\.|)"),
    unused=_OTHERS,
)

SAM_HF = Table(
    family="sam_hf",
    backbone=_rules(
        "projection",
        "layers",
        "layer_norm",
        ("conv1", "layer_norm1", "conv2", "layer_norm2"),
        r"vision_encoder\.",
    ),
    unused=_OTHERS,
)


def _config(model: Any) -> Config:
    """Return the config of a model."""
    attentions = [block.attn.inner for block in model.blocks]
    return {
        **transformer_fields("SamVisionModel", "sam_vision_model", model),
        "mlp_dim": hidden_width(model),
        "output_channels": model.neck.conv2.kernel.shape[-1],
        "global_attn_indexes": [i for i, attn in enumerate(attentions) if attn.window is None],
        "window_size": max(attn.window or 0 for attn in attentions),  # all that have one the same
        "qkv_bias": has_qkv_bias(model),
        "use_abs_pos": model.pos_embed is not None,
        "use_rel_pos": attentions[0].rel_pos_h is not None,
    }


FORM = Form(SAMEncoder, "sam_.*", SAM_HF, _config, has=GRID | {"neck", "neck's epsilon of 1e-6"})
FAMILY = Family(
    (SAM, SAM_HF),
    rank=8,
    forms={"sam": FORM},
    configs={"sam_vision_model": defaults(global_attn_indexes=[2, 5, 8, 11], window_size=14)},
)
