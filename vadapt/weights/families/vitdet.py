"""Names of ViTDet's backbone in detectron2's files of whole detectors, and of PAD's in these."""

from __future__ import annotations

from vadapt.weights.families.mae import trunk_rules
from vadapt.weights.tables import Family, Table

PAD_DETECTOR = Table(family="vitdet", backbone=trunk_rules(r"backbone\.net\."))

FAMILY = Family((PAD_DETECTOR,), rank=12, whole=True)
