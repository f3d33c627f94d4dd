"""Names of Conv-Adapter's files: torchvision's or ConvNeXt's own, and the adapters beside them."""

from __future__ import annotations

from vadapt.weights.tables import Family, Rule, Table, conv


def _adapter(source: str, layer: str) -> tuple[Rule, ...]:
    return (
        *conv(source + r"conv1", layer + "/adapter/conv1"),
        *conv(source + r"conv2", layer + "/adapter/conv2"),
        Rule(source + "se", layer + "/adapter/se", "vector"),
    )


# By the table of the backbone's own names.
RULES: dict[str, tuple[Rule, ...]] = {
    "resnet": tuple(
        rule
        for i in range(4)
        for rule in _adapter(rf"layer{i + 1}\.(\d+)\.tuning_module\.", rf"stages/{i}/\1/layers/1")
    ),
    "convnext": (
        *_adapter(r"stages\.(\d+)\.(\d+)\.tuning_module\.", r"stages/\1/\2/dwconv"),
        *(
            rule
            for i in range(3)
            for rule in _adapter(rf"tuning_module_downsample\.{i}\.", f"downsamples/{i + 1}/conv")
        ),
    ),
}


def with_adapters(table: Table) -> Table:
    """A family's table for files that hold its backbone and Conv-Adapter together."""
    return table._replace(backbone=(*table.backbone, *RULES.get(table.family, ())))


FAMILY = Family(beside=with_adapters)
