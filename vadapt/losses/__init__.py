"""Losses: pure functions of arrays."""

from vadapt.registry import Registry

# config.head.loss -> a function of (scores [b, h, w, k], labels [b, h, w], options) to a number.
PIXEL_LOSSES = Registry(
    "config.head.loss", {"cross_entropy": "vadapt.losses.segmentation:cross_entropy"}
)
