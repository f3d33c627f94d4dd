"""Heads: what a task puts on top of a backbone."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from vadapt.errors import ConfigError, nearest

# Of segmentation: config.head.name -> the class that reads maps and scores classes of pixels.
SEGMENTATION = {
    "linear": "vadapt.heads.linear:LinearHead",
    "upernet": "vadapt.heads.upernet:UPerNet",
    "mask2former": "vadapt.heads.mask2former:Mask2FormerHead",
}


def segmentation_head(name: str, widths: Sequence[int], num_classes: int, **options: Any) -> Any:
    """A head of `SEGMENTATION` for maps of these widths.

    Such a head is called with maps, fine to coarse, queries (or None) and a key in training. It
    has `scores(predictions, size)`, of every class at every pixel, and
    `loss(predictions, labels, key)`, the terms of the loss by name.

    Raises:
        ConfigError: no such head.
    """
    if name not in SEGMENTATION:
        raise ConfigError(f"unknown config.head.name {name!r}; {nearest(name, SEGMENTATION)}")
    module, attribute = SEGMENTATION[name].split(":")
    return getattr(importlib.import_module(module), attribute)(widths, num_classes, **options)
