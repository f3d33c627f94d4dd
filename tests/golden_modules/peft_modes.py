"""The golden case of VPT's tuning modes: which parameters train in each, by name."""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp
from flax import nnx

from tests.golden_modules.fields import Fields
from tests.golden_modules.pad_models import Arrays
from vadapt.adapters import pfeiffer, vpt
from vadapt.backbones.vit import ViT
from vadapt.partition import Head, flatten, mark, split, variables
from vadapt.system import System
from vadapt.weights.families.vpt import VPT, with_prompts

MODES = {"end2end": "everything", "linear": "head", "tinytl-bias": "bias"}


def build(config: Fields, mode: str) -> System:
    """A ViT of the case's sizes with what the mode is about, and a linear head."""
    size = {"width": config["dim"], "depth": config["depth"], "num_heads": 1, "mlp_ratio": 2}
    grid = {"image_size": config["img"], "patch_size": config["patch"]}
    model: Any = ViT(**size, **grid, rngs=nnx.Rngs(0))
    if "prompt" in mode:
        model = vpt.apply(model, num_tokens=5, deep=config["prompt_deep"])
    if mode == "adapter":
        model = pfeiffer.apply(model, reduction=config["adapter_reduction"])
    head = mark(nnx.Linear(config["dim"], config["classes"], rngs=nnx.Rngs(0)), Head)
    return System(model, head, layers=(-1,))


def place(name: str) -> tuple[str, int]:
    """The path of a parameter, and in how many that one is cut."""
    if found := re.fullmatch(r"head\.last_layer\.(weight|bias)", name):
        return "head/" + {"weight": "kernel", "bias": "bias"}[found[1]], 1
    found = with_prompts(VPT).find(name, "backbone/")
    assert found is not None, name
    path, rule = found
    return path, 1 if rule.part is None else rule.part[1]


def modes(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    outputs = {}
    for mode in config["names"].names():
        model = build(config, mode)
        names = [MODES.get(part, part) for part in mode.split("+")]
        trainable = set(flatten(split(model, [*names, "head"]).trainable))
        sizes = {path: value[...].size for path, value in variables(model).items()}
        places = [place(name) for name in config["names"][mode]]
        outputs[f"mask_{mode}"] = jnp.asarray([path in trainable for path, _ in places])
        outputs[f"numel_{mode}"] = jnp.asarray([sizes[path] // parts for path, parts in places])
        if beside := trainable - {path for path, _ in places}:
            raise ValueError(f"in mode {mode} train, besides, {sorted(beside)}")
    return outputs


MODULES = {"trainable-parameter selection for a ViT": modes}
