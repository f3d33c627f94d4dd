"""Backbones as transformers describes them: what its code can be, and fields of its configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple

from flax import nnx

from vadapt.backbones.convnext import ConvNeXt
from vadapt.backbones.resnet import ResNet
from vadapt.backbones.sam import SAMEncoder
from vadapt.backbones.swin import EPSILON, Swin
from vadapt.backbones.vit import ViT
from vadapt.nn.activations import gelu_exact, gelu_quick, gelu_tanh
from vadapt.nn.mlp import SwiGLU, swiglu_hidden
from vadapt.weights.tables import Table

Traits = Mapping[str, bool]
Config = dict[str, Any]

ACTIVATIONS = {gelu_exact: "gelu", gelu_quick: "quick_gelu", gelu_tanh: "gelu_pytorch_tanh"}


class Form(NamedTuple):
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
    gated, whole = isinstance(mlp, SwiGLU), mlp_ratio(model) * model.width
    relative = attn.relative is not None or attn.shared_relative is not None
    return {
        "plan of its blocks": model.plan is not None,
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
        "MLPs of a whole ratio": hidden_width(model) == (swiglu_hidden(whole) if gated else whole),
        "known activation": gated or mlp.activation in ACTIVATIONS,
        "bias of patches": model.patch_embed.proj.bias is not None,
        "bias of queries, keys and values": attn.qkv.bias is not None,
        "bias of queries and values alone": attn.q_bias is not None,
        "bias of attention's output": attn.proj.bias is not None,
        "bias of MLPs": last_layer(model).bias is not None,
    }


def _sam_traits(model: Any) -> Traits:
    tables = [block.attn.inner.rel_pos_h for block in model.blocks if block.is_global]
    rows = {table.shape[0] for table in tables if table is not None}
    return {
        "plan of its blocks": model.plan is not None,
        "square grid of positions": model.grid[0] == model.grid[1],
        "relative positions of another grid": bool(rows - {2 * model.grid[0] - 1}),
        "neck": model.neck is not None,
        # The config's epsilon is that of the blocks alone.
        "neck's epsilon of 1e-6": model.neck is None or model.neck.norm1.epsilon == 1e-6,
    }


def _resnet_traits(model: Any) -> Traits:
    blocks = [block for stage in model.stages for block in stage]
    layers = [layer for block in blocks for layer in block.layers]
    shortcuts = [block.shortcut for block in blocks if block.shortcut is not None]
    convolutions = [layer.conv for layer in (*model.stem, *layers, *shortcuts)]
    return {
        "stem of three convolutions": len(model.stem) > 1,
        "strides of 4, 8, 16, 32": model.strides == (4, 8, 16, 32),
        "bias of convolutions": any(conv.bias is not None for conv in convolutions),
        "dilations": any(layer.conv.kernel_dilation not in (1, (1, 1)) for layer in layers),
    }


def _convnext_traits(model: Any) -> Traits:
    return {
        "four stages": len(model.stages) == 4,
        "norm of the last stage": "3" in model.norms,
        "norms of other stages": bool(set(model.norms) - {"3"}),
    }


def _swin_traits(model: Any) -> Traits:
    number, blocks = len(model.stages), [block for stage in model.stages for block in stage]
    attentions = [block.attn.inner for block in blocks]
    mlp = blocks[0].mlp.inner
    return {
        "four stages": number == 4,
        "norm of the last stage": str(number - 1) in model.norms,
        "norms of other stages": bool(set(model.norms) - {str(number - 1)}),
        "windows of one size": len({attn.window for attn in attentions}) == 1,
        "whole windows on maps of any size": attentions[0].always_partition,
        "norms' epsilon of 1e-5": blocks[0].mlp.norm.epsilon == EPSILON,
        "known activation": mlp.activation in ACTIVATIONS,
        "bias of queries, keys and values": attentions[0].qkv.bias is not None,
    }


TRAITS: dict[type[nnx.Module], Callable[[Any], Traits]] = {
    ViT: _vit_traits,
    SAMEncoder: _sam_traits,
    ResNet: _resnet_traits,
    ConvNeXt: _convnext_traits,
    Swin: _swin_traits,
}


def first_fields(architecture: str, model_type: str, kernel: Any) -> Config:
    """Fields of all configs; `kernel` is that of the first convolution."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "num_channels": kernel.shape[2],
        "torch_dtype": str(kernel.dtype),
    }


def transformer_fields(architecture: str, model_type: str, model: Any) -> Config:
    """Fields of the configs of all transformers."""
    mlp = model.blocks[0].mlp
    return {
        **first_fields(architecture, model_type, model.patch_embed.proj.kernel),
        "hidden_size": model.width,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": model.blocks[0].attn.inner.num_heads,
        "patch_size": model.patch_size,
        "image_size": model.grid[0] * model.patch_size,
        "layer_norm_eps": mlp.norm.epsilon,
        "hidden_act": "silu" if is_gated(model) else ACTIVATIONS[mlp.inner.activation],
    }


def defaults(act: str = "gelu", epsilon: float = 1e-6, heads: int = 12, **more: Any) -> Config:
    """Defaults of a config's fields that no shape of a transformer tells."""
    common = {"hidden_act": act, "layer_norm_eps": epsilon, "num_attention_heads": heads}
    return {**common, **more}


def is_gated(model: Any) -> bool:
    return isinstance(model.blocks[0].mlp.inner, SwiGLU)


def last_layer(model: Any) -> Any:
    """The last layer of an MLP."""
    mlp = model.blocks[0].mlp.inner
    return mlp.w3 if is_gated(model) else mlp.fc2


def hidden_width(model: Any) -> int:
    return last_layer(model).kernel.shape[0]


def mlp_ratio(model: Any) -> int:
    """Ratio of the MLPs to the width, rounded; gated ones take two thirds (`swiglu_hidden`)."""
    return round(hidden_width(model) * (1.5 if is_gated(model) else 1.0) / model.width)


def has_qkv_bias(model: Any) -> bool:
    return model.blocks[0].attn.inner.qkv.bias is not None


TOKEN, QKV, WHOLE = "class token", "bias of queries, keys and values", "MLPs of a whole ratio"
BIASES = frozenset({"bias of attention's output", "bias of MLPs"})
GRID = frozenset({"square grid of positions"})
COMMON = frozenset({"final norm", "known activation", "bias of patches"})
VIT = COMMON | BIASES | GRID | {"table of positions"}
DINO = frozenset({"registers", "gated MLPs"})
