"""Names of Rein's checkpoints, which hold what was trained and no trunk.

The trunk comes from its own file. Without it a load fails, unless `allow_missing` names the trunk.

Paths are those of `vadapt.adapters.rein` in a backbone, and of `vadapt.necks.learned` and
`vadapt.heads.mask2former` beside it.
"""

from __future__ import annotations

from vadapt.weights.families.mask2former import MASK2FORMER
from vadapt.weights.tables import Family, Rule, Table, batch_norm, conv, linear, norm

_TRUNK = r"(?:backbone\.|)"


def _rein_rules(source: str, target: str) -> tuple[Rule, ...]:
    return (
        Rule(source + "scale", target + "scale"),
        Rule(source + "learnable_tokens", target + "tokens"),
        Rule(source + "learnable_tokens_a", target + "tokens_a"),
        Rule(source + "learnable_tokens_b", target + "tokens_b"),
        *linear(source + "mlp_token2feat", target + "token_to_feature"),
        *linear(source + "mlp_delta_f", target + "delta"),
        *linear(source + "transform", target + "transform"),
        *linear(source + "merge", target + "merge"),
    )


def _pyramid_rules() -> tuple[Rule, ...]:
    """Rules of `Deconvolutions`; its first map is that of the finest stride."""
    fpn = _TRUNK + "fpn"
    return (
        *norm(fpn + r"1\.0", "neck/norms/0"),
        *conv(fpn + r"1\.1", "neck/grow/0/0"),
        *batch_norm(fpn + r"1\.2", "neck/between"),
        *conv(fpn + r"1\.4", "neck/grow/0/1"),
        *norm(fpn + r"2\.0", "neck/norms/1"),
        *conv(fpn + r"2\.1", "neck/grow/1/0"),
        *norm(fpn + r"3", "neck/norms/2"),
        *norm(fpn + r"4\.0", "neck/norms/3"),
    )


REIN = Table(
    family="rein",
    backbone=(
        *_rein_rules(_TRUNK + r"reins\.", "adapter/"),
        *_rein_rules(_TRUNK + r"reins\.(\d+)\.", r"adapter/\1/"),  # one per stage
    ),
    head=(
        *_pyramid_rules(),
        *conv(r"neck\.lateral_convs\.(\d+)\.conv", r"neck/laterals/\1"),
        *conv(r"neck\.convs\.(\d+)\.conv", r"neck/outputs/\1"),
        *MASK2FORMER,
    ),
    unused=_TRUNK + r"fpn1\.2\.num_batches_tracked",
)


def with_rein(table: Table) -> Table:
    """A family's table for files that hold its trunk and Rein together."""
    return table._replace(
        backbone=table.backbone + REIN.backbone,
        head=table.head + REIN.head,
        unused="|".join(filter(None, (table.unused, REIN.unused))),
    )


FAMILY = Family((REIN,), rank=0, whole=True, beside=with_rein)
