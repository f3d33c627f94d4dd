"""Backbones as transformers describes them: names of weights, what its code can be, configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple

from flax import nnx

from vadapt.backbones.convnext import ConvNeXt
from vadapt.backbones.resnet import ResNet
from vadapt.backbones.sam import SAMEncoder
from vadapt.backbones.vit import ViT
from vadapt.nn.activations import gelu_exact, gelu_quick, gelu_tanh
from vadapt.nn.mlp import SwiGLU, swiglu_hidden
from vadapt.weights.clip import CLIP_HF
from vadapt.weights.convnext import CONVNEXT_HF
from vadapt.weights.dinov2 import DINOV2_HF
from vadapt.weights.dinov3 import DINOV3_HF, DINOV3_HF_GATED
from vadapt.weights.resnet import RESNET_HF
from vadapt.weights.sam import SAM_HF
from vadapt.weights.siglip import SIGLIP_HF
from vadapt.weights.tables import Table
from vadapt.weights.vit import VIT_HF

Traits = Mapping[str, bool]
Config = dict[str, Any]

ACTIVATIONS = {gelu_exact: "gelu", gelu_quick: "quick_gelu", gelu_tanh: "gelu_pytorch_tanh"}


class Family(NamedTuple):
    """A family's form in transformers."""

    kind: type[nnx.Module]
    names: str  # regular expression for its backbones' names; "" where another family takes them
    table: Table
    config: Callable[[Any], Config]
    has: Set[str]  # traits that a model must have
    may: Set[str] = frozenset()  # traits that it may have; it has no others


def _vit_traits(model: Any) -> Traits:
    """Whether a ViT has what families of it differ in; so for the others below."""
    attn, mlp = model.blocks[0].attn.inner, model.blocks[0].mlp.inner
    gated, whole = isinstance(mlp, SwiGLU), _ratio(model) * model.width
    relative = attn.relative is not None or attn.shared_relative is not None
    return {
        "class token": model.cls_token is not None,
        "class token twice": model.class_token_twice,
        "registers": model.registers is not None,
        "table of positions": model.pos_embed is not None,
        "square grid of positions": model.grid[0] == model.grid[1],
        "rotary positions of pairs": model.rotary == "pairs",
        "rotary positions of halves": model.rotary == "halves",
        "relative positions": relative,
        "first norm": model.first_norm is not None,
        "final norm": model.norm is not None,
        "norm inside MLPs": mlp.norm is not None,
        "layer scale": model.blocks[0].attn.scale is not None,
        "gated MLPs": gated,
        "MLPs of a whole ratio": _hidden(model) == (swiglu_hidden(whole) if gated else whole),
        "known activation": gated or mlp.activation in ACTIVATIONS,
        "bias of patches": model.patch_embed.proj.bias is not None,
        "bias of queries, keys and values": attn.qkv.bias is not None,
        "bias of queries and values alone": attn.q_bias is not None,
        "bias of attention's output": attn.proj.bias is not None,
        "bias of MLPs": _last(model).bias is not None,
    }


def _sam_traits(model: Any) -> Traits:
    tables = [block.attn.inner.rel_pos_h for block in model.blocks if block.is_global]
    rows = {table.shape[0] for table in tables if table is not None}
    return {
        "square grid of positions": model.grid[0] == model.grid[1],
        "relative positions of another grid": bool(rows - {2 * model.grid[0] - 1}),
        "neck": model.neck is not None,
        # The config's epsilon is that of the blocks alone.
        "neck's epsilon of 1e-6": model.neck is None or model.neck.norm1.epsilon == 1e-6,
    }


def _resnet_traits(model: Any) -> Traits:
    layers = [layer for stage in model.stages for block in stage for layer in block.layers]
    return {
        "stem of three convolutions": len(model.stem) > 1,
        "strides of 4, 8, 16, 32": model.strides == (4, 8, 16, 32),
        "dilations": any(layer.conv.kernel_dilation not in (1, (1, 1)) for layer in layers),
    }


def _convnext_traits(model: Any) -> Traits:
    return {
        "four stages": len(model.stages) == 4,
        "norm of the last stage": "3" in model.norms,
        "norms of other stages": bool(set(model.norms) - {"3"}),
    }


TRAITS: dict[type[nnx.Module], Callable[[Any], Traits]] = {
    ViT: _vit_traits,
    SAMEncoder: _sam_traits,
    ResNet: _resnet_traits,
    ConvNeXt: _convnext_traits,
}


def _first(architecture: str, model_type: str, kernel: Any) -> Config:
    """Fields of all configs; `kernel` is that of the first convolution."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "num_channels": kernel.shape[2],
        "torch_dtype": str(kernel.dtype),
    }


def _transformer(architecture: str, model_type: str, model: Any) -> Config:
    """Fields of the configs of all transformers."""
    mlp = model.blocks[0].mlp
    return {
        **_first(architecture, model_type, model.patch_embed.proj.kernel),
        "hidden_size": model.width,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": model.blocks[0].attn.inner.num_heads,
        "patch_size": model.patch_size,
        "image_size": model.grid[0] * model.patch_size,
        "layer_norm_eps": mlp.norm.epsilon,
        "hidden_act": "silu" if _gated(model) else ACTIVATIONS[mlp.inner.activation],
    }


def _clip(model: Any) -> Config:
    config = _transformer("CLIPVisionModel", "clip_vision_model", model)
    return {**config, "intermediate_size": _hidden(model)}


def _siglip(model: Any) -> Config:
    config = _transformer("SiglipVisionModel", "siglip_vision_model", model)
    return {**config, "intermediate_size": _hidden(model), "vision_use_head": False}


def _vit(model: Any) -> Config:
    config = _transformer("ViTModel", "vit", model)
    return {**config, "intermediate_size": _hidden(model), "qkv_bias": _qkv_bias(model)}


def _vit_mae(model: Any) -> Config:
    config = {**_vit(model), "architectures": ["ViTMAEModel"], "model_type": "vit_mae"}
    return {**config, "mask_ratio": 0.0}


def _dinov2(model: Any) -> Config:
    config = {
        **_transformer("Dinov2Model", "dinov2", model),
        "mlp_ratio": _ratio(model),
        "qkv_bias": _qkv_bias(model),
        "use_swiglu_ffn": _gated(model),
        "use_mask_token": False,
    }
    if model.registers is None:
        return config
    return {
        **config,
        "architectures": ["Dinov2WithRegistersModel"],
        "model_type": "dinov2_with_registers",
        "num_register_tokens": model.registers.shape[0],
    }


def _dinov3(model: Any) -> Config:
    attn = model.blocks[0].attn.inner
    return {
        **_transformer("DINOv3ViTModel", "dinov3_vit", model),
        "intermediate_size": _hidden(model),
        "num_register_tokens": model.num_extra - 1,
        "query_bias": attn.q_bias is not None,
        "key_bias": False,
        "value_bias": attn.v_bias is not None,
        "proj_bias": attn.proj.bias is not None,
        "mlp_bias": _last(model).bias is not None,
        "use_gated_mlp": _gated(model),
    }


def _sam(model: Any) -> Config:
    attentions = [block.attn.inner for block in model.blocks]
    return {
        **_transformer("SamVisionModel", "sam_vision_model", model),
        "mlp_dim": _hidden(model),
        "output_channels": model.neck.conv2.kernel.shape[-1],
        "global_attn_indexes": [i for i, attn in enumerate(attentions) if attn.window is None],
        "window_size": max(attn.window or 0 for attn in attentions),  # all that have one the same
        "qkv_bias": _qkv_bias(model),
        "use_abs_pos": model.pos_embed is not None,
        "use_rel_pos": attentions[0].rel_pos_h is not None,
    }


def _resnet(model: Any) -> Config:
    kernel = model.stem[0].conv.kernel
    bottleneck = len(model.stages[0][0].layers) == 3
    return {
        **_first("ResNetModel", "resnet", kernel),
        "embedding_size": kernel.shape[-1],
        "hidden_sizes": list(model.widths),
        "depths": [len(stage) for stage in model.stages],
        "layer_type": "bottleneck" if bottleneck else "basic",
    }


def _convnext(model: Any) -> Config:
    return {
        **_first("ConvNextModel", "convnext", model.downsamples[0].conv.kernel),
        "hidden_sizes": list(model.widths),
        "depths": [len(stage) for stage in model.stages],
        "layer_norm_eps": model.norms["3"].epsilon,
    }


def _gated(model: Any) -> bool:
    return isinstance(model.blocks[0].mlp.inner, SwiGLU)


def _last(model: Any) -> Any:
    """The last layer of an MLP."""
    mlp = model.blocks[0].mlp.inner
    return mlp.w3 if _gated(model) else mlp.fc2


def _hidden(model: Any) -> int:
    return _last(model).kernel.shape[0]


def _ratio(model: Any) -> int:
    """Ratio of the MLPs to the width, rounded; gated ones take two thirds (`swiglu_hidden`)."""
    return round(_hidden(model) * (1.5 if _gated(model) else 1.0) / model.width)


def _qkv_bias(model: Any) -> bool:
    return model.blocks[0].attn.inner.qkv.bias is not None


# Its plain and its gated models differ in names of one layer.
_DINOV3 = DINOV3_HF._replace(backbone=DINOV3_HF.backbone + DINOV3_HF_GATED.backbone)

_TOKEN, _QKV, _WHOLE = "class token", "bias of queries, keys and values", "MLPs of a whole ratio"
_BIASES = frozenset({"bias of attention's output", "bias of MLPs"})
_GRID = frozenset({"square grid of positions"})
_COMMON = frozenset({"final norm", "known activation", "bias of patches"})
_VIT = _COMMON | _BIASES | _GRID | {"table of positions"}
_DINO = frozenset({"registers", "gated MLPs"})

FAMILIES: dict[str, Family] = {
    "clip": Family(
        *(ViT, "clip_.*", CLIP_HF, _clip),
        has=_VIT - {"bias of patches"} | {_TOKEN, _QKV, "first norm"},
        may={_WHOLE},
    ),
    "siglip": Family(ViT, "siglip_.*", SIGLIP_HF, _siglip, has=_VIT | {_QKV}, may={_WHOLE}),
    "vit": Family(ViT, "vit_.*", VIT_HF, _vit, has=_VIT | {_TOKEN}, may={_QKV, _WHOLE}),
    # Its features are those of "vit", in an order of patches drawn anew in every call.
    "vit_mae": Family(ViT, "", VIT_HF, _vit_mae, has=_VIT | {_TOKEN}, may={_QKV, _WHOLE}),
    "dinov2": Family(
        *(ViT, "dinov2_.*", DINOV2_HF, _dinov2),
        has=_VIT | {_TOKEN, _WHOLE, "layer scale"},
        may=_DINO | {_QKV},
    ),
    "dinov3": Family(
        *(ViT, "dinov3_.*", _DINOV3, _dinov3),
        has=_COMMON | {_TOKEN, "layer scale", "rotary positions of halves"},
        may=_DINO | _BIASES | _GRID | {_WHOLE, "bias of queries and values alone"},
    ),
    "sam": Family(
        SAMEncoder, "sam_.*", SAM_HF, _sam, has=_GRID | {"neck", "neck's epsilon of 1e-6"}
    ),
    "resnet": Family(ResNet, r"resnet\d+", RESNET_HF, _resnet, has={"strides of 4, 8, 16, 32"}),
    "convnext": Family(
        *(ConvNeXt, "convnext_.*", CONVNEXT_HF, _convnext),
        has={"four stages", "norm of the last stage"},
    ),
}
