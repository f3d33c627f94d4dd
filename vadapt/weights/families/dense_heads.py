"""Names of dense detection heads in mmdetection's files of whole detectors.

Paths are those of `vadapt.heads.boxes` as a model's `head`, beside the backbone of any family.
"""

from __future__ import annotations

from vadapt.weights.tables import Family, Rule, Table, conv, norm

_HEAD = r"bbox_head\."
_OUTPUTS = "retina_cls|retina_reg|gfl_cls|gfl_reg|atss_cls|atss_reg|atss_centerness"

DENSE_HEADS = Table(
    family="dense_heads",
    backbone=(),
    head=(
        *conv(_HEAD + r"(cls_convs|reg_convs)\.(\d+)\.conv", r"head/\1/\2/conv"),
        *norm(_HEAD + r"(cls_convs|reg_convs)\.(\d+)\.gn", r"head/\1/\2/norm"),
        *conv(_HEAD + f"({_OUTPUTS})", r"head/\1"),
        Rule(_HEAD + r"scales\.(\d+)\.scale", r"head/scales/\1/scale"),
    ),
    # The whole numbers that distributions are over.
    unused=_HEAD + r"integral\.project",
)


def with_dense_heads(table: Table) -> Table:
    """A family's table for files that hold its trunk and a dense head."""
    return table._replace(
        head=table.head + DENSE_HEADS.head,
        unused="|".join(filter(None, (table.unused, DENSE_HEADS.unused))),
    )


FAMILY = Family((DENSE_HEADS,), rank=12, whole=True, beside=with_dense_heads)
