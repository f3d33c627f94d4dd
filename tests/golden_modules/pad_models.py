"""Models of PAD's golden cases, from the original's settings and parameters."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from tests.golden_modules.fields import Fields
from vadapt import adapters
from vadapt.backbones.vit import ViT
from vadapt.heads.mae_decoder import MAEDecoder
from vadapt.nn.convolutions import BatchNorm
from vadapt.tasks.mae import MaskedAutoencoder
from vadapt.weights.load import match_weights, with_arrays

Arrays = dict[str, Any]
# Relative positions by whether every block has a bias of its own, and whether all share one.
RELATIVE = {
    (False, False): None,
    (True, False): "each",
    (False, True): "shared",
    (True, True): "both",
}
SCHEDULES = {0: "constant", 1: "geometric", 2: "linear"}


def nhwc(images: Any) -> Any:
    """Images as vadapt takes them."""
    return jnp.moveaxis(images, 1, -1)


def imported(model: Any, params: Arrays, **allow: Any) -> Any:
    """The model with a checkpoint's parameters, through the importer that users call."""
    return with_arrays(model, match_weights(model, params, **allow)[0])


def with_norms(model: Any, config: Fields) -> Any:
    """The model, its batch norms set to what a file says of them."""
    epsilon, step = config.get("bn_eps", 1e-5), config.get("bn_momentum", 0.1)
    for _, part in nnx.iter_graph(model):
        if isinstance(part, BatchNorm):
            part.epsilon, part.momentum = epsilon, 1 - step
    return model


def either(config: Fields, names: tuple[str, str], default: Any) -> Any:
    """The field that the original's modules call by one name or another."""
    return next((config[name] for name in names if name in config), default)


def scale_options(config: Fields) -> dict[str, Any]:
    """The options of `patchwise_scale.apply` from the original's settings."""
    scalar = either(config, ("adapt_scalar", "adapter_scalar"), "frozen")
    initial = float(config.get("init_value", "0.5")) or 0.5  # 0 stands for the default
    schedule = SCHEDULES[config.get("layerdecay_scale", 0)]
    if config.get("patch_wise_scalar", False):
        scale: str | float = "patchwise"
    elif scalar == "learnable_scalar":
        scale = "learnable"
        if initial != 0.5:
            raise ValueError(f"init_value is {initial}; vadapt's learned scales start at 0.5")
    else:
        scale = initial if scalar == "frozen" else float(scalar)
    return {
        "hidden": either(config, ("hidden", "down_size"), 64),
        "scale": scale,
        "fusion": config.get("fusion_method", "concat"),
        "norm": either(config, ("adapter_layernorm_option", "layernorm_option"), "in"),
        "norm_epsilon": config.get("adapter_ln_eps", 1e-5),
        # Of fixed scales; the original ignores it for others, too.
        "schedule": "constant" if isinstance(scale, str) else schedule,
    }


def build_backbone(config: Fields, rngs: nnx.Rngs) -> Any:
    """The encoder, with adapters if the settings ask for them."""
    # What adapters would be like is said of models without them, too.
    options = scale_options(config)
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
    return adapters.apply(backbone, "patchwise_scale", **options)


def build_autoencoder(config: Fields) -> MaskedAutoencoder:
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
