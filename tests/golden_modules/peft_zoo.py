"""Golden cases of parameter-efficient methods: each function builds one module and its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flax import nnx

from tests.golden_modules import peft_adapters, peft_conv, peft_recipe, peft_ssf, peft_svf
from tests.golden_modules.fields import Fields, same
from tests.golden_modules.pad_models import nhwc
from tests.golden_modules.rein_backbones import nchw
from vadapt.adapters.changed import change
from vadapt.adapters.lora import FilterLowRank, Lora, LowRank
from vadapt.weights.load import with_arrays

Arrays = dict[str, Any]


def lora_layer(config: Mapping[str, Any], params: Arrays) -> Any:
    """The layer of a golden file; the original stacks the parts' rows."""
    inputs, outputs, rank = config["in_features"], config["out_features"], config["r"]
    same(config, scaling=config["alpha"] / rank)
    enabled = config.get("enable_lora", [True])
    parts = tuple(i for i, on in enumerate(enabled) if on)
    rngs = nnx.Rngs(0)
    sizes = {"parts": parts, "num_parts": len(enabled)}
    lora = LowRank(inputs, outputs, rank, **sizes, alpha=config["alpha"], rngs=rngs)
    values = {
        "kernel": params["weight"].T,
        "bias": params["bias"],
        "lora/down": params["lora_A"].reshape(len(parts), rank, inputs).swapaxes(1, 2),
        "lora/up": params["lora_B"].reshape(len(parts), -1, rank).swapaxes(1, 2),
    }
    return with_arrays(change(Lora, nnx.Linear(inputs, outputs, rngs=rngs), lora), values)


def lora(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    return {"y": lora_layer(config, params)(inputs["x"])}


def lora_conv(config: Fields, params: Arrays) -> Any:
    """The convolution of a golden file, in the released code's convention."""
    inputs, side, padding = config["in_channels"], config["kernel"], config["padding"]
    rngs = nnx.Rngs(0)
    plain = nnx.Conv(
        inputs,
        config["out_channels"],
        (side, side),
        strides=config["stride"],
        padding=((padding, padding),) * 2,
        rngs=rngs,
    )
    values = {
        "kernel": params["conv.weight"].transpose(2, 3, 1, 0),
        "bias": params["conv.bias"],
        "lora/down": params["lora_A"],
        "lora/up": params["lora_B"],
    }
    lora = FilterLowRank(plain, config["r"], alpha=config["alpha"], rngs=rngs)
    return with_arrays(change(Lora, plain, lora), values)


def lora_conv2d(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    return {"y": nchw(lora_conv(config, params)(nhwc(inputs["x"])))}


MODULES = {
    "Linear": lora,
    "MergedLinear": lora,
    "Conv2d": lora_conv2d,
    **peft_ssf.MODULES,
    **peft_svf.MODULES,
    **peft_adapters.MODULES,
    **peft_conv.MODULES,
    **peft_recipe.MODULES,
}
MADE = peft_svf.MADE
