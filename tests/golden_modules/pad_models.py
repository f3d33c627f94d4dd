"""Models of PAD's golden cases, from the original's settings and parameters."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from vadapt import adapters
from vadapt.backbones.vit import ViT
from vadapt.heads.mae_decoder import MAEDecoder
from vadapt.tasks.mae import MaskedAutoencoder
from vadapt.weights.load import match_weights, with_arrays

Arrays = dict[str, Any]
SCHEDULES = {0: "constant", 1: "geometric", 2: "linear"}


def nhwc(images: Any) -> Any:
    """Images as vadapt takes them."""
    return jnp.moveaxis(images, 1, -1)


def imported(model: Any, params: Arrays, **allow: Any) -> Any:
    """The model with a checkpoint's parameters, through the importer that users call."""
    return with_arrays(model, match_weights(model, params, **allow)[0])


def scale_options(config: dict[str, Any]) -> dict[str, Any]:
    """The options of `patchwise_scale.apply` from the original's settings."""
    scalar = config.get("adapt_scalar", config.get("adapter_scalar", "frozen"))
    if config.get("patch_wise_scalar", False):
        scale: str | float = "patchwise"
    elif scalar == "learnable_scalar":
        scale = "learnable"
    else:
        scale = float(config.get("init_value", "0.5") if scalar == "frozen" else scalar)
    return {
        "hidden": config.get("hidden", config.get("down_size", 64)),
        "scale": scale,
        "fusion": config.get("fusion_method", "concat"),
        "norm": config.get("adapter_layernorm_option", config.get("layernorm_option", "in")),
        "schedule": "constant"
        if scale in ("patchwise", "learnable")
        else SCHEDULES[config.get("layerdecay_scale", 0)],
    }


def build_backbone(config: dict[str, Any], rngs: nnx.Rngs) -> Any:
    """The encoder, with adapters if the settings ask for them."""
    backbone = ViT(
        width=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        patch_size=config["patch_size"],
        image_size=config["img_size"],
        in_channels=config.get("in_chans", 3),
        mlp_ratio=config["mlp_ratio"],
        positions="sincos",
        norm_epsilon=config["ln_eps"],
        rngs=rngs,
    )
    if not config.get("adapt", False):
        return backbone
    return adapters.apply(backbone, "patchwise_scale", **scale_options(config))


def build_autoencoder(config: dict[str, Any]) -> MaskedAutoencoder:
    """The masked autoencoder of a golden file's settings."""
    rngs = nnx.Rngs(0)
    backbone = build_backbone(config, rngs)
    decoder = MAEDecoder(
        config["embed_dim"],
        backbone.grid,
        config["patch_size"] ** 2 * config.get("in_chans", 3),
        width=config["decoder_embed_dim"],
        depth=config["decoder_depth"],
        num_heads=config["decoder_num_heads"],
        mlp_ratio=config["mlp_ratio"],
        norm_epsilon=config["ln_eps"],
        rngs=rngs,
    )
    return MaskedAutoencoder(backbone, decoder)
