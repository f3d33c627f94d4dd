"""Names of FRPT's files: a backbone's own, and the sampler and the head beside them."""

from __future__ import annotations

from vadapt.weights.tables import Family, Rule, Table, batch_norm, conv

SAMPLER: tuple[Rule, ...] = (
    *conv("conv_last", "frpt/sampler/score"),
    Rule(r"filter\.weight", "frpt/sampler/filter/kernel", "conv"),
)
_GATE, _CONVS = r"mam\.channel_attention\.", r"conv_block3\.(\d+)\."
HEAD: tuple[Rule, ...] = (
    Rule(_GATE + r"0\.weight", "head/awareness/squeeze/kernel", "pointwise"),
    Rule(_GATE + r"2\.weight", "head/awareness/excite/kernel", "pointwise"),
    Rule(_CONVS + r"conv\.weight", r"head/awareness/layers/\1/conv/kernel", "conv"),
    *batch_norm(_CONVS + "bn", r"head/awareness/layers/\1/norm"),
)


def with_sampler(table: Table) -> Table:
    """A ResNet's table for files that hold it with the sampler and the head."""
    if table.family != "resnet":
        return table
    return table._replace(backbone=(*table.backbone, *SAMPLER), head=(*table.head, *HEAD))


FAMILY = Family(beside=with_sampler)
