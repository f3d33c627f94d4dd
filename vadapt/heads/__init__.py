"""Heads: what a task puts on top of a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vadapt.options import check
from vadapt.registry import Registry

# Of segmentation: config.head.name -> the class that reads maps and scores classes of pixels.
SEGMENTATION = Registry(
    "config.head.name",
    {
        "linear": "vadapt.heads.linear:LinearHead",
        "upernet": "vadapt.heads.upernet:UPerNet",
        "mask2former": "vadapt.heads.mask2former:Mask2FormerHead",
    },
)
# Of masked pre-training: what fills in the patches that the backbone did not see.
DECODERS = Registry(
    "decoder",
    {
        "mae": "vadapt.heads.mae_decoder:MAEDecoder",
        "prompting": "vadapt.heads.milan_decoder:PromptingDecoder",
    },
)
# Of labels: config.head.name -> the class that reads maps and scores labels of images.
LABELS = Registry(
    "config.head.name",
    {
        "linear": "vadapt.heads.linear:LinearLabels",
        "mlp": "vadapt.heads.vig_classifier:ClassifierLabels",
        "label_graph": "vadapt.heads.label_graph:LabelGraph",
        "retrieval": "vadapt.heads.retrieval:RetrievalLabels",
        "vpt_classifier": "vadapt.heads.linear:VPTLabels",
    },
)
# Of boxes: config.head.name -> the class that reads maps and finds objects.
BOXES = Registry(
    "config.head.name",
    {
        "retinanet": "vadapt.heads.boxes.retinanet:RetinaNet",
        "gfl": "vadapt.heads.boxes.gfl:GFL",
        "atss": "vadapt.heads.boxes.atss:ATSS",
        "fsaf": "vadapt.heads.boxes.fsaf:FSAF",
    },
)


def segmentation_head(name: str, widths: Sequence[int], num_classes: int, **options: Any) -> Any:
    """A head of `SEGMENTATION` for maps of these widths.

    Such a head is called with maps, fine to coarse, queries (or None) and a key in training. It
    has `scores(predictions, size)`, of every class at every pixel, and
    `loss(predictions, labels, key)`, the terms of the loss by name.

    Raises:
        ConfigError: no such head.
    """
    head = SEGMENTATION[name]
    check("head", name, head, options, given=("widths", "inputs", "num_classes"))
    return head(widths, num_classes, **options)


def label_head(name: str, widths: Sequence[int], num_labels: int, **options: Any) -> Any:
    """A head of `LABELS` for maps of these widths.

    Such a head is called with maps, fine to coarse, and a key in training, and gives
    `linear.LabelPredictions`.

    Raises:
        ConfigError: no such head.
    """
    head = LABELS[name]
    check("head", name, head, options, given=("widths", "inputs", "num_labels"))
    return head(widths, num_labels, **options)


def box_head(name: str, widths: Sequence[int], num_classes: int, **options: Any) -> Any:
    """A head of `BOXES` for maps of these widths.

    Such a head is called with maps, fine to coarse, and a key in training, and gives
    `boxes.dense.Predictions`. It has `loss(predictions, boxes, classes, valid, sizes)`, the terms
    by name, and `detect(predictions, sizes)`; see `boxes.dense.DenseHead`.

    Raises:
        ConfigError: no such head.
    """
    head = BOXES[name]
    check("head", name, head, options, given=("widths", "num_classes"))
    return head(widths, num_classes, **options)
