"""What files beside the weights say of them that no shape tells: heads, activations, pixels.

They are transformers' `config.json` (or timm's) and `preprocessor_config.json`, and OpenCLIP's
`open_clip_config.json`. A difference is named like "config.json/hidden_act".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from vadapt.backbones.named import Statistics
from vadapt.backbones.resnet import ResNet
from vadapt.backbones.sam import SAMEncoder
from vadapt.backbones.swin import Swin
from vadapt.backbones.vit import ViT
from vadapt.errors import WeightsError
from vadapt.nn.activations import gelu_exact, gelu_quick, gelu_tanh
from vadapt.nn.mlp import SwiGLU
from vadapt.options import accepted
from vadapt.weights.families import families
from vadapt.weights.files import BESIDE, parse_json

CONFIG, PIXELS, OPEN_CLIP = BESIDE
# Names of weight files that stand for their whole folder; others may lie anywhere.
_OF_FOLDERS = re.compile(r"(?:model|pytorch_model|open_clip_\w+)[.-].*")
Facts = dict[str, Any]

_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("gelu", "gelu_python"), gelu_exact),
    **dict.fromkeys(("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_python_tanh"), gelu_tanh),
    "quick_gelu": gelu_quick,
}
# Fields of configs, and the options of backbones that are the same.
_OPTIONS = {
    "num_attention_heads": "num_heads",
    "layer_norm_eps": "norm_epsilon",
    "hidden_act": "activation",
    "global_attn_indexes": "global_blocks",
    "window_size": "window",
}
_FIELDS = (*_OPTIONS, "rope_theta", "downsample_in_bottleneck")


class Beside(NamedTuple):
    """What the files beside some weights say; empty where there are none."""

    facts: Mapping[str, Any] = MappingProxyType({})  # by transformers' names of fields
    file: str = CONFIG  # that says them
    statistics: Statistics | None = None  # of the pixels, in 0-1
    grid: tuple[int, int] | None = None  # of positions, where it is no square
    made: Mapping[str, Any] = MappingProxyType({})  # options that a header of vadapt's own says

    def options(self, build: Callable[..., Any]) -> dict[str, Any]:
        """The options of a backbone's function that are as these files say."""
        known = accepted(build)
        found = {_OPTIONS[field]: value for field, value in self.facts.items() if field in _OPTIONS}
        if "activation" in found:
            found["activation"] = _ACTIVATIONS.get(found["activation"])
        found |= self.made
        return {k: v for k, v in found.items() if k in known and v is not None}

    def differences(self, model: Any) -> dict[str, str]:
        """What a model, or its backbone, is made otherwise: words by "file/field"."""
        own = facts_of(getattr(model, "backbone", model))
        return {
            f"{self.file}/{field}": f"{value!r}, the model's is {own[field]!r}"
            for field, value in self.facts.items()
            if field in own and not _same(field, value, own[field])
        }


def facts_of(backbone: Any) -> Facts:
    """What a backbone computes by, where no shape tells, by transformers' names of fields."""
    if isinstance(backbone, ResNet):
        return {"hidden_act": "relu", "downsample_in_bottleneck": False}
    if isinstance(backbone, Swin):
        block = backbone.stages[0][0]
        return {
            "hidden_act": _name_of(block.mlp.inner.activation),
            "layer_norm_eps": block.mlp.norm.epsilon,
            "window_size": block.attn.inner.window,
        }
    if not isinstance(backbone, ViT | SAMEncoder):
        return {}
    blocks: list[Any] = list(backbone.blocks)
    if not blocks:
        return {}
    block = blocks[0]
    mlp = block.mlp.inner
    act = "silu" if isinstance(mlp, SwiGLU) else _name_of(getattr(mlp, "activation", gelu_exact))
    facts = {
        "hidden_act": act,
        "layer_norm_eps": block.mlp.norm.epsilon,
        "num_attention_heads": block.attn.inner.num_heads,
    }
    if isinstance(backbone, SAMEncoder):
        facts["global_attn_indexes"] = [i for i, one in enumerate(blocks) if one.is_global]
        for window in {one.attn.inner.window for one in blocks} - {None}:
            facts["window_size"] = window
    elif backbone.rotary == "halves":
        facts["rope_theta"] = 100.0
    return facts


def read_beside(path: str | Path) -> Beside:
    """What lies beside a weight file, or in a folder with one.

    Raises:
        WeightsError: a file that is no JSON, or says what cannot be understood.
    """
    path = Path(path)
    if path.is_file() and not _OF_FOLDERS.fullmatch(path.name):
        return Beside()
    folder = path if path.is_dir() else path.parent
    weights = path.name
    if path.is_dir():
        files = ("model.safetensors", "model.safetensors.index.json", "open_clip_model.safetensors")
        weights = next((name for name in files if (folder / name).is_file()), CONFIG)
    order = (OPEN_CLIP, CONFIG) if weights.startswith("open_clip") else (CONFIG, OPEN_CLIP)
    name = next((name for name in order if (folder / name).is_file()), None)
    try:
        found = Beside()
        if name is not None:
            config = _read(folder / name)
            found = _of_open_clip(config) if name == OPEN_CLIP else _of_config(config)
        if (folder / PIXELS).is_file() and found.statistics is None:
            found = found._replace(statistics=_of_pixels(_read(folder / PIXELS)))
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise WeightsError(
            f"{' or '.join(BESIDE)} in {str(folder)!r} says what cannot be understood: {error}"
        ) from error
    return found


def _of_config(config: Mapping[str, Any]) -> Beside:
    """Of transformers' config, or timm's."""
    if "architecture" in config:
        pixels = {**config, **config.get("pretrained_cfg", {})}
        facts = {"hidden_act": "quick_gelu"} if "quickgelu" in config["architecture"] else {}
        return Beside(facts, statistics=_statistics(pixels.get("mean"), pixels.get("std")))
    kind = config.get("model_type", "")
    if "vision_config" in config:
        kind, config = f"{kind}_vision_model", config["vision_config"]
    # transformers leaves out what is the default of its `model_type`.
    configs = (family.configs for family in families())
    facts = dict(next((known[kind] for known in configs if kind in known), {}))
    rope = config.get("rope_parameters") or {}
    for field in _FIELDS:
        if (value := config.get(field, rope.get(field))) is not None:
            facts[field] = value
    if config.get("use_swiglu_ffn"):  # whose activation is fixed
        facts.pop("hidden_act", None)
    size, patch = config.get("image_size"), config.get("patch_size")
    grid = None
    if isinstance(size, list) and isinstance(patch, int) and size[0] != size[1]:
        grid = (size[0] // patch, size[1] // patch)
    return Beside(facts, grid=grid)


def _of_open_clip(config: Mapping[str, Any]) -> Beside:
    model, pixels = config["model_cfg"], config.get("preprocess_cfg", {})
    vision, facts = model["vision_cfg"], {}
    if "timm_model_name" not in vision and isinstance(vision.get("layers"), int):
        tanh = vision.get("act_kwargs", {}).get("approximate") == "tanh"
        plain = "gelu_pytorch_tanh" if tanh else "gelu"
        facts = {
            "hidden_act": "quick_gelu" if model.get("quick_gelu") else plain,
            "layer_norm_eps": vision.get("norm_kwargs", {}).get("eps", 1e-5),
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
        }
    return Beside(facts, OPEN_CLIP, _statistics(pixels.get("mean"), pixels.get("std")))


def _of_pixels(config: Mapping[str, Any]) -> Statistics | None:
    """Statistics in 0-1 of an image processor."""
    if "image_mean" not in config and config.get("do_normalize", True):
        return None
    mean, std = config.get("image_mean"), config.get("image_std")
    if not config.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    factor = 255 * config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 255
    found = _statistics(mean, std)
    if found is None or math.isclose(factor, 1.0, rel_tol=1e-6):
        return found
    return _statistics([x / factor for x in found.mean], [x / factor for x in found.std])


def _statistics(mean: Any, std: Any) -> Statistics | None:
    if mean is None or std is None:
        return None
    mean, std = (tuple(float(x) for x in row) for row in (mean, std))
    wrong = len(mean) != 3 or len(std) != 3 or min(std) <= 0
    if wrong or not all(map(math.isfinite, (*mean, *std))):
        raise ValueError(f"a mean of {mean} and a deviation of {std}")
    return Statistics(mean, std)


def _read(path: Path) -> dict[str, Any]:
    found = parse_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no fields")
    return found


def _name_of(activation: Callable[..., Any]) -> str:
    names = (name for name, function in _ACTIVATIONS.items() if function is activation)
    return next(names, getattr(activation, "__name__", "another"))


def _same(field: str, value: Any, own: Any) -> bool:
    if field == "hidden_act":
        return value == own or _ACTIVATIONS.get(value, value) is _ACTIVATIONS.get(own, own)
    if isinstance(own, float) and isinstance(value, int | float):
        return math.isclose(value, own, rel_tol=1e-6)
    return value == own
