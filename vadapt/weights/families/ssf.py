"""Names of SSF's released files: timm's of the frozen backbone, a scale and a shift beside each.

Of a module's pairs the number says the order in which they act; paths are those of
`vadapt.adapters.ssf`.
"""

from __future__ import annotations

from vadapt.weights.tables import Family, Rule, Table


def _pair(name: str, number: int, layer: str) -> tuple[Rule, Rule]:
    return (
        Rule(rf"{name}ssf_scale_{number}", f"{layer}/ssf_scale"),
        Rule(rf"{name}ssf_shift_{number}", f"{layer}/ssf_shift"),
    )


_VIT, _CONVNEXT = r"blocks\.(\d+)\.", r"stages\.(\d+)\.blocks\.(\d+)\."


def _transformer(name: str, path: str) -> tuple[Rule, ...]:
    """The pairs of a block of attention and MLP."""
    return (
        *_pair(name, 1, path + "attn/norm"),
        *_pair(name + r"attn\.", 1, path + "attn/inner/qkv"),
        *_pair(name + r"attn\.", 2, path + "attn/inner/proj"),
        *_pair(name, 2, path + "mlp/norm"),
        *_pair(name + r"mlp\.", 1, path + "mlp/inner/fc1"),
        *_pair(name + r"mlp\.", 2, path + "mlp/inner/fc2"),
    )


_SWIN = (
    *_pair("", 1, "norms/3"),
    *_pair(r"patch_embed\.", 1, "patch_embed/proj"),
    *_pair(r"patch_embed\.", 2, "patch_embed/norm"),
    *_transformer(r"layers\.(\d+)\.blocks\.(\d+)\.", r"stages/\1/\2/"),
)
# By the table of the backbone's own names.
RULES: dict[str, tuple[Rule, ...]] = {
    "mae": (
        *_pair("", 1, "norm"),
        *_pair(r"patch_embed\.", 1, "patch_embed/proj"),
        *_transformer(_VIT, r"blocks/\1/"),
    ),
    "swin": _SWIN,
    "swin_timm": _SWIN,
    "convnext_timm": (
        *_pair(_CONVNEXT, 1, r"stages/\1/\2/dwconv"),
        *_pair(_CONVNEXT, 2, r"stages/\1/\2/norm"),
        *_pair(_CONVNEXT + r"mlp\.", 1, r"stages/\1/\2/fc1"),
        *_pair(_CONVNEXT + r"mlp\.", 2, r"stages/\1/\2/fc2"),
    ),
}


def with_ssf(table: Table) -> Table:
    """A family's table for files that hold its backbone and SSF together."""
    return table._replace(backbone=(*table.backbone, *RULES.get(table.family, ())))


FAMILY = Family(beside=with_ssf)
