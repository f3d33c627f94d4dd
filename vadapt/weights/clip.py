"""Names of the visual towers in CLIP's and SLIP's checkpoints; their text towers find no place.

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
        Rule(r"visual\.class_embedding", "cls_token", "vector"),
        Rule(r"visual\.positional_embedding", "pos_embed", "table"),
        Rule(r"visual\.conv1\.weight", "patch_embed/proj/kernel", "conv"),
        Rule(r"visual\.ln_pre\.weight", "first_norm/scale"),
        Rule(r"visual\.ln_pre\.bias", "first_norm/bias"),
        *_clip_block_rules(),
        Rule(r"visual\.ln_post\.weight", "norm/scale"),
        Rule(r"visual\.ln_post\.bias", "norm/bias"),
    ),
    head=(Rule(r"visual\.proj", "proj"),),  # used as tokens @ proj, so not transposed
)

SLIP = Table(
    family="slip",
    backbone=trunk_rules(r"(?:visual|module\.visual)\."),
    head=(Rule("(?:image_projection|module.image_projection)", "proj"),),
)
