"""Names of UPerNet and its FCN in mmsegmentation's files, and of PAD's whole segmenters.

Paths are those of `vadapt.heads.upernet` as a model's `head`, `vadapt.necks.learned` as its `neck`.
"""

from __future__ import annotations

from vadapt.weights.families.mae import trunk_rules
from vadapt.weights.tables import Family, Rule, Table, batch_norm, conv, linear

_HEAD, _AUXILIARY = r"decode_head\.", r"auxiliary_head\."
_TRUNK = r"(?:backbone\.|)"


def _conv_norm(source: str, target: str) -> tuple[Rule, ...]:
    return *conv(source + r"\.conv", target + "/conv"), *batch_norm(
        source + r"\.bn", target + "/norm"
    )


def _classifier(source: str, target: str) -> tuple[Rule, Rule]:
    """A 1x1 convolution there, a linear layer here."""
    weight, bias = linear(source, target)
    return weight._replace(layout="pointwise"), bias


UPERNET: tuple[Rule, ...] = (
    *_conv_norm(_HEAD + r"psp_modules\.(\d+)\.1", r"head/pools/\1"),
    *_conv_norm(_HEAD + "bottleneck", "head/bottleneck"),
    *_conv_norm(_HEAD + r"lateral_convs\.(\d+)", r"head/laterals/\1"),
    *_conv_norm(_HEAD + r"fpn_convs\.(\d+)", r"head/outputs/\1"),
    *_conv_norm(_HEAD + "fpn_bottleneck", "head/fuse"),
    *_classifier(_HEAD + "conv_seg", "head/classifier/linear"),
    *_conv_norm(_AUXILIARY + r"convs\.0", "head/auxiliary/conv"),
    *_classifier(_AUXILIARY + "conv_seg", "head/auxiliary/classifier/linear"),
)

PAD_SEGMENTER = Table(
    family="pad_segmenter",
    backbone=trunk_rules(_TRUNK),
    head=(
        *conv(_TRUNK + r"fpn1\.0", "neck/grow/0/0"),
        *batch_norm(_TRUNK + r"fpn1\.1", "neck/between"),
        *conv(_TRUNK + r"fpn1\.3", "neck/grow/0/1"),
        *conv(_TRUNK + r"fpn2\.0", "neck/grow/1/0"),
        *UPERNET,
    ),
    # Indices are computed here.
    unused=r".*\.relative_position_index|.*\.num_batches_tracked",
)

FAMILY = Family((PAD_SEGMENTER,), rank=11, whole=True)
