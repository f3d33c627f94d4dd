"""Backbones as folders of Hugging Face's transformers: weights under its names, and its config."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from vadapt.backbones.layers import SwiGLU, gelu_exact, gelu_quick
from vadapt.errors import WeightsError, nearest
from vadapt.partition import variables
from vadapt.weights.clip import CLIP_HF
from vadapt.weights.dinov2 import DINOV2_HF
from vadapt.weights.files import write_arrays
from vadapt.weights.tables import Table, revert

ACTIVATIONS = {gelu_exact: "gelu", gelu_quick: "quick_gelu"}


class Family(NamedTuple):
    """How transformers writes a family: names of weights, and settings from a model's fields."""

    table: Table
    config: Callable[[Any], dict[str, Any]]


def save_hugging_face(model: nnx.Module, folder: str | Path, family: str) -> Path:
    """Writes a plain backbone as `AutoModel.from_pretrained(folder)` reads it.

    Positions of another grid than the model's own are transformers' affair: it resizes DINOv2's
    table as `position_resize="cubic"` does.

    Args:
        family: a key of `FAMILIES`, such as "dinov2".

    Returns:
        The folder, with `model.safetensors` and `config.json`.

    Raises:
        WeightsError: no such family, or the model has what it cannot say; names all of it.
    """
    if family not in FAMILIES:
        raise WeightsError(f"unknown family {family!r}; {nearest(family, FAMILIES)}")
    values = {path: np.asarray(value[...]) for path, value in variables(model).items()}
    arrays, nameless = revert(values, FAMILIES[family].table)
    if nameless:
        more = f" and {len(nameless) - 4} more" if len(nameless) > 4 else ""
        raise WeightsError(
            f"transformers' {family} has no name for {', '.join(nameless[:4])}{more}; fold adapters"
            " in first (vadapt.fold, or the command `merge`), leave heads out"
        )
    config = FAMILIES[family].config(model)
    folder = Path(folder)
    write_arrays(folder / "model.safetensors", arrays, {"format": "pt"})
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / "config.json")
    return folder


def family_of(backbone: str) -> str:
    """The family of a named backbone: "dinov2" of "dinov2_small_reg".

    Raises:
        WeightsError: transformers' names are not known for it.
    """
    found = [family for family in FAMILIES if backbone.startswith(family)]
    if not found:
        raise WeightsError(
            f"no transformers family is known for {backbone!r}; known: {', '.join(FAMILIES)}"
        )
    return max(found, key=len)


def _dinov2(model: Any) -> dict[str, Any]:
    mlp = model.blocks[0].mlp.inner
    swiglu = isinstance(mlp, SwiGLU)
    # The config gives a whole ratio; a gated MLP takes two thirds of it, see `SwiGLU`.
    hidden = mlp.w3.kernel.shape[0] * 3 / 2 if swiglu else mlp.fc1.kernel.shape[1]
    ratio = round(hidden / model.width)
    whole = abs(hidden - ratio * model.width) < (12 if swiglu else 1)
    _check(
        "dinov2",
        model,
        layer_scale=True,
        first_norm=False,
        activation=gelu_exact,
        reasons=[] if whole else [f"an MLP of {hidden / model.width:.4g} times the width"],
    )
    config = {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        **_sizes(model),
        "mlp_ratio": ratio,
        "hidden_act": "gelu",
        "qkv_bias": model.blocks[0].attn.inner.qkv.bias is not None,
        "use_swiglu_ffn": swiglu,
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


def _clip(model: Any) -> dict[str, Any]:
    mlp = model.blocks[0].mlp.inner
    _check("clip", model, layer_scale=False, first_norm=True, patch_bias=False, qkv_bias=True)
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        **_sizes(model),
        "intermediate_size": mlp.fc1.kernel.shape[1],
        "hidden_act": ACTIVATIONS[mlp.activation],
    }


# One small function a family; the keys begin the names of its backbones.
FAMILIES: dict[str, Family] = {
    "clip": Family(CLIP_HF, _clip),
    "dinov2": Family(DINOV2_HF, _dinov2),
}


def _sizes(model: Any) -> dict[str, Any]:
    """What the configs of all plain ViTs say."""
    height, width = model.grid
    if height != width:
        raise WeightsError(
            f"transformers needs a square grid of positions, the model's is {height}x{width}; "
            "create it with a square image_size"
        )
    return {
        "hidden_size": model.width,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": model.blocks[0].attn.inner.num_heads,
        "patch_size": model.patch_size,
        "image_size": height * model.patch_size,
        "num_channels": model.patch_embed.proj.kernel.shape[2],
        "layer_norm_eps": model.blocks[0].mlp.norm.epsilon,
        "torch_dtype": str(model.pos_embed.dtype),
    }


def _check(
    family: str,
    model: Any,
    *,
    layer_scale: bool,
    first_norm: bool,
    patch_bias: bool = True,
    qkv_bias: bool | None = None,
    activation: Any = None,
    reasons: Sequence[str] = (),
) -> None:
    """Refuses a model that the family's code would compute otherwise; says all reasons.

    Args:
        layer_scale, first_norm, patch_bias, qkv_bias: whether the family has them; None if it may.
        activation: of plain MLPs; None for any in `ACTIVATIONS`.
        reasons: others, found already.
    """
    block = model.blocks[0]
    attn, mlp = block.attn.inner, block.mlp.inner
    last = mlp.w3 if isinstance(mlp, SwiGLU) else mlp.fc2
    given = getattr(mlp, "activation", activation)
    has: list[tuple[str, bool, bool | None]] = [
        ("class token", model.cls_token is not None, True),
        ("class token twice", model.class_token_twice, False),
        ("first norm", model.first_norm is not None, first_norm),
        ("final norm", model.norm is not None, True),
        ("layer scale", block.attn.scale is not None, layer_scale),
        ("bias of patches", model.patch_embed.proj.bias is not None, patch_bias),
        ("bias of queries, keys and values", attn.qkv.bias is not None, qkv_bias),
        ("bias of attention's output", attn.proj.bias is not None, True),
        ("bias of MLPs", last.bias is not None, True),
    ]
    wrong = [
        f"{'a' if there else 'no'} {name}"
        for name, there, right in has
        if right is not None and there != right
    ]
    if given not in ({activation} if activation else ACTIVATIONS):
        wrong.append(f"activation {getattr(given, '__name__', given)}")
    wrong += reasons
    if wrong:
        raise WeightsError(
            f"transformers' {family} cannot be this {type(model).__name__}, which has "
            f"{'; '.join(wrong)}"
        )
