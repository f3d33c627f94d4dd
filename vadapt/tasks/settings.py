"""Fields of a recipe's sections that the package's tasks read, by which a typo is found.

A task says in its `settings` which of these hold the fields of which section. `config.data` has,
besides, what the pipeline and the sources read; head, neck and method what their functions take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelFields:
    """Of `config.model`: see `system.build`."""

    backbone: str
    weights: str = ""
    allow_missing: Sequence[str] = ()
    allow_unexpected: Sequence[str] = ()
    options: Any = None
    adapter: str = ""
    plan: str = ""


@dataclass(frozen=True)
class ImageFields:
    """Of `config.data`: what normalizes images, numbers of 0-1, of all channels or of each."""

    mean: Any
    std: Any


@dataclass(frozen=True)
class CropFields(ImageFields):
    """Of `config.data`, for images without labels: see `inputs.crop_feed`."""

    crop_area: Sequence[float] = ()
    roi_probability: float = 0.0
    roi_min_side: int = 0


@dataclass(frozen=True)
class MaskFields(ImageFields):
    """Of `config.data`, for images with masks: see `labelled` and `frozen_features`."""

    num_classes: int = 0
    short_edges: Sequence[int] = ()
    longest: int = 0
    max_share: float = 1.0
    distort: bool = False
    augment: bool = True
    cache: str = ""
    test_longest: int = 0
    test_shortest: int = 0


@dataclass(frozen=True)
class LabelFields(ImageFields):
    """Of `config.data`, for images with labels: see `image_labels`."""

    num_labels: int = 0
    augment: str = "none"
    crop_area: Sequence[float] = ()
    test_crop: float = 0.0


@dataclass(frozen=True)
class BoxFields(ImageFields):
    """Of `config.data`, for images with boxes: see `boxed`."""

    short_edges: Sequence[int] = ()
    longest: int = 0
    test_longest: int = 0
    test_shortest: int = 0
    multiple: int = 64


@dataclass(frozen=True)
class HeadFields:
    """Of `config.task`, for what puts a head on maps: see `system.with_head`."""

    name: str
    layers: Sequence[int]
    norm: bool


@dataclass(frozen=True)
class RecognitionFields(HeadFields):
    """Of `config.task`, for a head of labels."""

    train_norms: bool = False
    load_head: bool = False


@dataclass(frozen=True)
class MultilabelFields(RecognitionFields):
    """Of `config.task`: `loss` holds the options of `losses.multilabel.label_losses`."""

    loss: Any = None


@dataclass(frozen=True)
class ClassificationFields(RecognitionFields):
    """Of `config.task`: see `mixing.mix`; `smoothing` is of the targets."""

    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0


@dataclass(frozen=True)
class MaskedFields:
    """Of `config.task`, for masked autoencoding."""

    name: str
    mask_ratio: float
    norm_pixels: bool
    decoder_width: int
    decoder_depth: int
    decoder_heads: int


@dataclass(frozen=True)
class TeacherFields(MaskedFields):
    """Of `config.task`, for MILAN: see `MILANTask`."""

    target: str = "features"
    semantic_masking: bool = True
    teacher: str = ""
    teacher_weights: str = ""
    teacher_statistics: str = "data"


@dataclass(frozen=True)
class PixelEvaluation:
    """Of `config.eval`: images a batch, and `sliding.Inference`."""

    batch: int
    crop: Sequence[int] = ()
    stride: Sequence[int] = ()
    windows: int = 4
    scales: Sequence[float] = (1.0,)
    flip: bool = False


@dataclass(frozen=True)
class LabelEvaluation:
    """Of `config.eval`: images a batch, and from which probability on a label is predicted."""

    batch: int
    threshold: float = 0.5


@dataclass(frozen=True)
class ClassificationEvaluation(LabelEvaluation):
    """Of `config.eval`; `features` are names in `image_features.READERS`, such as ("knn",)."""

    features: Sequence[str] = ()


@dataclass(frozen=True)
class BoxEvaluation:
    """Of `config.eval`: images a batch; a name in `boxed.PROTOCOLS`; see `DenseHead.detect`.

    Args:
        shown: the least score of an object that pictures show and `predict` tells.
        tile: (height, width) of the tiles in which `predict` sees an image; () sees it whole.
        tile_overlap: pixels that neighbors share, (height, width).
    """

    batch: int
    protocol: str = "coco"
    before: int = 1000
    least: float = 0.05
    most: int = 500
    shown: float = 0.3
    tile: Sequence[int] = ()
    tile_overlap: Sequence[int] = (0, 0)


@dataclass(frozen=True)
class ProbeEvaluation:
    """Of `config.eval`: see `probe.SceneProbe`."""

    probe_scenes: int = 0
    probe_view: str = "visible"


Sections = Mapping[str, type]

SEGMENTATION_FIELDS: Sections = {
    "model": ModelFields,
    "data": MaskFields,
    "task": HeadFields,
    "eval": PixelEvaluation,
}
DETECTION_FIELDS: Sections = {
    "model": ModelFields,
    "data": BoxFields,
    "task": HeadFields,
    "eval": BoxEvaluation,
}
MULTILABEL_FIELDS: Sections = {
    "model": ModelFields,
    "data": LabelFields,
    "task": MultilabelFields,
    "eval": LabelEvaluation,
}
CLASSIFICATION_FIELDS: Sections = {
    **MULTILABEL_FIELDS,
    "task": ClassificationFields,
    "eval": ClassificationEvaluation,
}
RETRIEVAL_FIELDS: Sections = {**CLASSIFICATION_FIELDS, "eval": LabelEvaluation}
MAE_FIELDS: Sections = {
    "model": ModelFields,
    "data": CropFields,
    "task": MaskedFields,
    "eval": ProbeEvaluation,
}
MILAN_FIELDS: Sections = {**MAE_FIELDS, "task": TeacherFields}
