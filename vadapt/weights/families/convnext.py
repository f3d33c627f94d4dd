"""Names of ConvNeXt checkpoints: the official ones, OpenMMLab's, timm's and Hugging Face's.

Classifiers are passed over by an import and absent from an export; the norm before them is that of
the last stage.
"""

from __future__ import annotations

from typing import Any

from vadapt.backbones.convnext import ConvNeXt
from vadapt.weights.tables import Family, Rule, Table, conv, linear, norm
from vadapt.weights.transformers_config import Config, Form, first_fields

_LAST = "norms/3"


def _between(name: str) -> tuple[Rule, ...]:
    """Norm and convolution between stages; `name` has the number of the stage behind them."""
    return (
        *norm(name + r"\.0", r"downsamples/\1/norm"),
        *conv(name + r"\.1", r"downsamples/\1/conv"),
    )


def _stem(conv_name: str, norm_name: str) -> tuple[Rule, ...]:
    return (*conv(conv_name, "downsamples/0/conv"), *norm(norm_name, "downsamples/0/norm"))


def _block(
    name: str, depthwise: str, norm_name: str, first: str, second: str, scale: str
) -> tuple[Rule, ...]:
    """Names of a block's layers; `name` has the numbers of stage and block."""
    path = r"stages/\1/\2/"
    return (
        *conv(name + depthwise, path + "dwconv"),
        *norm(name + norm_name, path + "norm"),
        *linear(name + first, path + "fc1"),
        *linear(name + second, path + "fc2"),
        Rule(name + scale, path + "scale/gamma"),
    )


CONVNEXT = Table(
    family="convnext",
    backbone=(
        *_stem(r"downsample_layers\.0\.0", r"downsample_layers\.0\.1"),
        *_between(r"downsample_layers\.([1-3])"),
        *_block(r"stages\.(\d+)\.(\d+)\.", "dwconv", "norm", "pwconv1", "pwconv2", "gamma"),
        *norm("norm", _LAST),
        *norm(r"norm(\d)", r"norms/\1"),  # of the official detectors and segmenters
    ),
    unused=r"head\..*",
)

_MM = r"(?:|backbone\.)"  # the prefix is that of classifiers and segmenters
CONVNEXT_MM = Table(
    family="convnext_mm",
    backbone=(
        *_stem(_MM + r"downsample_layers\.0\.0", _MM + r"downsample_layers\.0\.1"),
        *_between(_MM + r"downsample_layers\.([1-3])"),
        *_block(
            _MM + r"stages\.(\d+)\.(\d+)\.",
            *("depthwise_conv", "norm", "pointwise_conv1", "pointwise_conv2", "gamma"),
        ),
        *norm(_MM + r"norm(\d)", r"norms/\1"),
    ),
    unused=r"head\.fc\..*",
)

CONVNEXT_TIMM = Table(
    family="convnext_timm",
    backbone=(
        *_stem(r"stem\.0", r"stem\.1"),
        *_between(r"stages\.([1-3])\.downsample"),
        *_block(
            r"stages\.(\d+)\.blocks\.(\d+)\.",
            *("conv_dw", "norm", r"mlp\.fc1", r"mlp\.fc2", "gamma"),
        ),
        *norm(r"head\.norm", _LAST),
    ),
    unused=r"head\.fc\..*",
)

_HF = r"(?:|convnext\.)"  # the prefix is that of classifiers
CONVNEXT_HF = Table(
    family="convnext_hf",
    backbone=(
        *_stem(_HF + r"embeddings\.patch_embeddings", _HF + r"embeddings\.layernorm"),
        *_between(_HF + r"encoder\.stages\.([1-3])\.downsampling_layer"),
        *_block(
            _HF + r"encoder\.stages\.(\d+)\.layers\.(\d+)\.",
            *("dwconv", "layernorm", "pwconv1", "pwconv2", "layer_scale_parameter"),
        ),
        *norm(_HF + "layernorm", _LAST),
        *(
            rule
            for i in range(4)
            for rule in norm(rf"hidden_states_norms\.stage{i + 1}", f"norms/{i}")
        ),
    ),
    unused=r"classifier\..*",
)


def _config(model: Any) -> Config:
    """Return the config of a model."""
    return {
        **first_fields("ConvNextModel", "convnext", model.downsamples[0].conv.kernel),
        "hidden_sizes": list(model.widths),
        "depths": [len(stage) for stage in model.stages],
        "layer_norm_eps": model.norms["3"].epsilon,
    }


FORM = Form(
    *(ConvNeXt, "convnext_.*", CONVNEXT_HF, _config),
    has={"four stages", "norm of the last stage"},
)
FAMILY = Family(
    (CONVNEXT, CONVNEXT_MM, CONVNEXT_TIMM, CONVNEXT_HF), rank=10, forms={"convnext": FORM}
)
