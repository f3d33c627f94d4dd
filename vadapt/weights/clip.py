"""Names of the visual towers in CLIP's and SLIP's checkpoints, and in Hugging Face's of CLIP.

Their text towers find no place.

Paths are those of `vadapt.backbones.teachers.Tower`: a backbone, and `proj` beside it.
"""

from __future__ import annotations

from vadapt.weights.mae import trunk_rules
from vadapt.weights.tables import Rule, Table


def _clip_block_rules() -> tuple[Rule, ...]:
    name, path = r"visual\.transformer\.resblocks\.(\d+)\.", r"blocks/\1/"
    attn, mlp = path + "attn/inner/", path + "mlp/inner/"
    return (
        Rule(name + r"ln_1\.weight", path + "attn/norm/scale"),
        Rule(name + r"ln_1\.bias", path + "attn/norm/bias"),
        # Query, key and value thirds, head-major inside each: the rows of timm's `qkv`.
        Rule(name + r"attn\.in_proj_weight", attn + "qkv/kernel", "linear"),
        Rule(name + r"attn\.in_proj_bias", attn + "qkv/bias"),
        Rule(name + r"attn\.out_proj\.weight", attn + "proj/kernel", "linear"),
        Rule(name + r"attn\.out_proj\.bias", attn + "proj/bias"),
        Rule(name + r"ln_2\.weight", path + "mlp/norm/scale"),
        Rule(name + r"ln_2\.bias", path + "mlp/norm/bias"),
        Rule(name + r"mlp\.c_fc\.weight", mlp + "fc1/kernel", "linear"),
        Rule(name + r"mlp\.c_fc\.bias", mlp + "fc1/bias"),
        Rule(name + r"mlp\.c_proj\.weight", mlp + "fc2/kernel", "linear"),
        Rule(name + r"mlp\.c_proj\.bias", mlp + "fc2/bias"),
    )


CLIP = Table(
    family="clip",
    backbone=(
        Rule(r"visual\.class_embedding", "cls_token"),
        Rule(r"visual\.positional_embedding", "pos_embed"),
        Rule(r"visual\.conv1\.weight", "patch_embed/proj/kernel", "conv"),
        Rule(r"visual\.ln_pre\.weight", "first_norm/scale"),
        Rule(r"visual\.ln_pre\.bias", "first_norm/bias"),
        *_clip_block_rules(),
        Rule(r"visual\.ln_post\.weight", "norm/scale"),
        Rule(r"visual\.ln_post\.bias", "norm/bias"),
    ),
    head=(Rule(r"visual\.proj", "proj"),),  # used as tokens @ proj, so not transposed
)

# Models of the tower alone have the names without the prefix in memory, and in files.
_VISION = r"(?:vision_model\.|)"


def _hugging_face_block_rules() -> tuple[Rule, ...]:
    name, path = _VISION + r"encoder\.layers\.(\d+)\.", r"blocks/\1/"
    attn, mlp = path + "attn/inner/", path + "mlp/inner/"
    thirds = []
    for part, letter in enumerate("qkv"):
        source = name + rf"self_attn\.{letter}_proj\."
        thirds += [
            Rule(source + "weight", attn + "qkv/kernel", "linear", (part, 3)),
            Rule(source + "bias", attn + "qkv/bias", part=(part, 3)),
        ]
    return (
        Rule(name + r"layer_norm1\.weight", path + "attn/norm/scale"),
        Rule(name + r"layer_norm1\.bias", path + "attn/norm/bias"),
        *thirds,
        Rule(name + r"self_attn\.out_proj\.weight", attn + "proj/kernel", "linear"),
        Rule(name + r"self_attn\.out_proj\.bias", attn + "proj/bias"),
        Rule(name + r"layer_norm2\.weight", path + "mlp/norm/scale"),
        Rule(name + r"layer_norm2\.bias", path + "mlp/norm/bias"),
        Rule(name + r"mlp\.(fc1|fc2)\.weight", mlp + r"\2/kernel", "linear"),
        Rule(name + r"mlp\.(fc1|fc2)\.bias", mlp + r"\2/bias"),
    )


CLIP_HF = Table(
    family="clip_hf",
    backbone=(
        Rule(_VISION + r"embeddings\.class_embedding", "cls_token"),
        Rule(_VISION + r"embeddings\.position_embedding\.weight", "pos_embed"),
        Rule(_VISION + r"embeddings\.patch_embedding\.weight", "patch_embed/proj/kernel", "conv"),
        Rule(_VISION + r"pre_layrnorm\.weight", "first_norm/scale"),  # spelt like this
        Rule(_VISION + r"pre_layrnorm\.bias", "first_norm/bias"),
        *_hugging_face_block_rules(),
        Rule(_VISION + r"post_layernorm\.weight", "norm/scale"),
        Rule(_VISION + r"post_layernorm\.bias", "norm/bias"),
    ),
    head=(Rule(r"visual_projection\.weight", "proj", "linear"),),
    unused=_VISION + r"embeddings\.position_ids",  # 0, 1, 2, ... in older files
)

SLIP = Table(
    family="slip",
    backbone=trunk_rules(r"(?:visual|module\.visual)\."),
    head=(Rule("(?:image_projection|module.image_projection)", "proj"),),
)
