"""Names of the visual towers in CLIP's and SLIP's checkpoints, and in Hugging Face's of CLIP.

Their text towers find no place.

Paths are those of `vadapt.backbones.teachers.Tower`: a backbone, and `proj` beside it.
"""

from __future__ import annotations

from vadapt.weights.mae import trunk_rules
from vadapt.weights.tables import Rule, Table, linear, norm


def _clip_block_rules() -> tuple[Rule, ...]:
    name, path = r"visual\.transformer\.resblocks\.(\d+)\.", r"blocks/\1/"
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


CLIP = Table(
    family="clip",
    backbone=(
        Rule(r"visual\.class_embedding", "cls_token"),
        Rule(r"visual\.positional_embedding", "pos_embed"),
        Rule(r"visual\.conv1\.weight", "patch_embed/proj/kernel", "conv"),
        *norm(r"visual\.ln_pre", "first_norm"),
        *_clip_block_rules(),
        *norm(r"visual\.ln_post", "norm"),
    ),
    head=(Rule(r"visual\.proj", "proj"),),  # used as tokens @ proj, so not transposed
)

# Models of the tower alone have the names without the prefix in memory, and in files.
_VISION = r"(?:vision_model\.|)"


def _hugging_face_block_rules() -> tuple[Rule, ...]:
    name, path = _VISION + r"encoder\.layers\.(\d+)\.", r"blocks/\1/"
    attn, mlp = path + "attn/inner/", path + "mlp/inner/"
    return (
        *norm(name + r"layer_norm1", path + "attn/norm"),
        *linear(name + r"self_attn\.q_proj", attn + "qkv", (0, 3)),
        *linear(name + r"self_attn\.k_proj", attn + "qkv", (1, 3)),
        *linear(name + r"self_attn\.v_proj", attn + "qkv", (2, 3)),
        *linear(name + r"self_attn\.out_proj", attn + "proj"),
        *norm(name + r"layer_norm2", path + "mlp/norm"),
        *linear(name + r"mlp\.(fc1|fc2)", mlp + r"\2"),
    )


CLIP_HF = Table(
    family="clip_hf",
    backbone=(
        Rule(_VISION + r"embeddings\.class_embedding", "cls_token"),
        Rule(_VISION + r"embeddings\.position_embedding\.weight", "pos_embed"),
        Rule(_VISION + r"embeddings\.patch_embedding\.weight", "patch_embed/proj/kernel", "conv"),
        *norm(_VISION + r"pre_layrnorm", "first_norm"),  # spelt like this
        *_hugging_face_block_rules(),
        *norm(_VISION + r"post_layernorm", "norm"),
    ),
    head=(Rule(r"visual_projection\.weight", "proj", "linear"),),
    unused=_VISION + r"embeddings\.position_ids",  # 0, 1, 2, ... in older files
)

SLIP = Table(
    family="slip",
    backbone=trunk_rules(r"(?:visual|module\.visual)\."),
    head=(Rule("(?:image_projection|module.image_projection)", "proj"),),
)
