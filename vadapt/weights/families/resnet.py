"""Names of ResNet checkpoints: torchvision's and timm's, OpenMMLab's V1c, Hugging Face's.

Counters of batches and classifiers are passed over by an import and absent from an export.
"""

from __future__ import annotations

from typing import Any

from vadapt.backbones.resnet import ResNet
from vadapt.weights.tables import Family, Rule, Table, batch_norm, conv
from vadapt.weights.transformers_config import Config, Form, first_fields

_PREFIX = r"(?:|backbone\.)"  # that of detectors, segmenters and OpenMMLab's classifiers
_UNUSED = r".*\.num_batches_tracked|fc\..*|head\.fc\..*"


def _conv_norm(conv_name: str, norm_name: str, path: str) -> tuple[Rule, ...]:
    return (*conv(conv_name, path + "/conv"), *batch_norm(norm_name, path + "/norm"))


def _stage_rules() -> tuple[Rule, ...]:
    """torchvision's names of blocks, which most others have taken over."""
    rules: list[Rule] = []
    for i in range(4):
        name, path = rf"{_PREFIX}layer{i + 1}\.(\d+)\.", rf"stages/{i}/\1/"
        for j in range(3):
            rules += _conv_norm(f"{name}conv{j + 1}", f"{name}bn{j + 1}", f"{path}layers/{j}")
        rules += _conv_norm(rf"{name}downsample\.0", rf"{name}downsample\.1", path + "shortcut")
    return tuple(rules)


RESNET = Table(
    family="resnet",
    backbone=(*_conv_norm(_PREFIX + "conv1", _PREFIX + "bn1", "stem/0"), *_stage_rules()),
    unused=_UNUSED,
)

# The numbers are those of a sequence in which activations count.
RESNET_V1C = Table(
    family="resnet_v1c",
    backbone=(
        *_conv_norm(_PREFIX + r"stem\.0", _PREFIX + r"stem\.1", "stem/0"),
        *_conv_norm(_PREFIX + r"stem\.3", _PREFIX + r"stem\.4", "stem/1"),
        *_conv_norm(_PREFIX + r"stem\.6", _PREFIX + r"stem\.7", "stem/2"),
        *_stage_rules(),
    ),
    unused=_UNUSED,
)

RESNET_V1C_TIMM = Table(
    family="resnet_v1c_timm",
    backbone=(
        *_conv_norm(r"conv1\.0", r"conv1\.1", "stem/0"),
        *_conv_norm(r"conv1\.3", r"conv1\.4", "stem/1"),
        *_conv_norm(r"conv1\.6", r"bn1", "stem/2"),
        *_stage_rules(),
    ),
    unused=_UNUSED,
)


def _hugging_face(source: str, target: str) -> tuple[Rule, ...]:
    """One of their convolutions with its norm; the prefix is that of classifiers."""
    name = r"(?:|resnet\.)" + source
    return _conv_norm(name + r"\.convolution", name + r"\.normalization", target)


_BLOCK = r"encoder\.stages\.(\d+)\.layers\.(\d+)\."
RESNET_HF = Table(
    family="resnet_hf",
    backbone=(
        *_hugging_face(r"embedder\.embedder", "stem/0"),
        *_hugging_face(_BLOCK + r"layer\.(\d+)", r"stages/\1/\2/layers/\3"),
        *_hugging_face(_BLOCK + "shortcut", r"stages/\1/\2/shortcut"),
    ),
    unused=r".*\.num_batches_tracked|classifier\..*",
)


def _config(model: Any) -> Config:
    """Return the config of a model."""
    kernel = model.stem[0].conv.kernel
    bottleneck = len(model.stages[0][0].layers) == 3
    return {
        **first_fields("ResNetModel", "resnet", kernel),
        "embedding_size": kernel.shape[-1],
        "hidden_sizes": list(model.widths),
        "depths": [len(stage) for stage in model.stages],
        "layer_type": "bottleneck" if bottleneck else "basic",
    }


FORM = Form(ResNet, r"resnet\d+", RESNET_HF, _config, has={"strides of 4, 8, 16, 32"})
FAMILY = Family(
    (RESNET, RESNET_V1C, RESNET_V1C_TIMM, RESNET_HF),
    rank=9,
    forms={"resnet": FORM},
    configs={"resnet": {"hidden_act": "relu", "downsample_in_bottleneck": False}},
)
