"""Golden cases of recipes: rates by layer, and schedules."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.golden_modules.fields import Fields
from tests.golden_modules.pad_models import Arrays
from vadapt.backbones.vit import ViT
from vadapt.partition import EVERYTHING, flatten, split
from vadapt.training.layer_decay import layer_factors
from vadapt.training.optimizers import decays
from vadapt.training.schedules import warmup_cosine, warmup_covers_cosine
from vadapt.weights.families.mae import MAE


class Classifier(nnx.Module):
    """A transformer whose parameters have the official names, and a head."""

    def __init__(self, depth: int):
        rngs = nnx.Rngs(0)
        self.backbone = ViT(
            width=4, depth=depth, num_heads=2, patch_size=4, image_size=8, rngs=rngs
        )
        self.head = nnx.Linear(4, 2, rngs=rngs)


def layer_decay(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """Rates and decays by name; sizes do not matter."""
    leaves = flatten(split(Classifier(config["depth"]), EVERYTHING).trainable)
    factors, spared = layer_factors(list(leaves), config["layer_decay"]), config["no_decay"]

    def path(name: str) -> str:
        found = MAE.find(name, "backbone/")
        return found[0] if found else {"weight": "head/kernel"}.get(name[5:], "head/bias")

    def decay(name: str) -> float:
        acts = decays(path(name), leaves[path(name)], by_layer=name in spared)
        return config["weight_decay"] * (acts and name not in spared)

    return {
        "lr_scale": np.array([factors[path(name)] for name in config["names"]]),
        "weight_decay": np.array([decay(name) for name in config["names"]]),
    }


def half_cosine(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    rate = warmup_cosine(
        jnp.asarray(config["epoch_points"]),
        peak=config["lr"],
        end=config["min_lr"],
        warmup=config["warmup_epochs"],
        total=config["epochs"],
    )
    return {"lr": rate}


def vpt_cosine(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    total = config["total"]
    options = {"peak": 1.0, "end": 0.0, "warmup": config["warmup"], "total": total}
    return {"factor": warmup_cosine(jnp.arange(total + 1.0), **options)}


def timm_cosine(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    epochs = config["epochs"]
    rate = warmup_covers_cosine(
        jnp.arange(epochs + config["cooldown"] + 1.0),
        peak=config["lr"],
        end=config["min_lr"],
        warmup=config["warmup_epochs"],
        total=epochs,
        start=config["warmup_lr"],
    )
    return {"lr": rate}


MODULES = {
    "param_groups_lrd": layer_decay,
    "half-cycle cosine with linear warmup (per iteration)": half_cosine,
    "VPT warmup cosine, stepped once per EPOCH": vpt_cosine,
    "timm cosine, stepped once per epoch, 10 cooldown epochs": timm_cosine,
}
