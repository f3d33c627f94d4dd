"""Golden cases of PAD: each function builds one named module and computes its outputs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from vadapt import adapters
from vadapt.adapters.patchwise_scale import Bottleneck, LayerGate
from vadapt.backbones.layers import Block
from vadapt.backbones.positions import resize_table, sincos_table
from vadapt.backbones.vit import ViT
from vadapt.heads.mae_decoder import MAEDecoder
from vadapt.losses.reconstruction import masked_mse, normalise_patches, patchify
from vadapt.tasks.mae import MaskedAutoencoder, random_masking
from vadapt.training.optim import warmup_cosine
from vadapt.weights.load import match_weights, with_arrays

Arrays = dict[str, Any]
SCHEDULES = {0: "constant", 1: "geometric", 2: "linear"}


def nhwc(images: Any) -> Any:
    """Images as vadapt takes them."""
    return jnp.moveaxis(images, 1, -1)


def imported(model: Any, params: Arrays, **allow: Any) -> Any:
    """The model with a checkpoint's parameters, through the importer that users call."""
    return with_arrays(model, match_weights(model, params, **allow)[0])


class Stack(nnx.Module):
    """Blocks in the place where the name table expects them."""

    def __init__(self, blocks: list[nnx.Module]):
        self.blocks = nnx.List(blocks)


class Beside(nnx.Module):
    """An adapter and its layer scale, where a block's MLP branch has them."""

    def __init__(self, adapter: nnx.Module, gate: nnx.Module | None):
        self.adapter = adapter
        self.gate = gate


class Place(nnx.Module):
    """A block of which only the MLP branch exists."""

    def __init__(self, mlp: nnx.Module):
        self.mlp = mlp


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


def adapter(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    options = scale_options(config)
    rngs = nnx.Rngs(0)
    bottleneck = Bottleneck(config["dim"], options["hidden"], norm=options["norm"], rngs=rngs)
    gate = None
    if options["scale"] != "patchwise":
        learnable = options["scale"] == "learnable"
        gate = LayerGate(0.5 if learnable else options["scale"], learnable=learnable)
    model = Stack([Place(Beside(bottleneck, gate))])
    named = {f"blocks.0.adaptmlp.{name}": value for name, value in params.items()}
    beside = imported(model, named).blocks[0].mlp
    up = beside.adapter(inputs["x"])
    return {"up": up} if gate is None else {"up": up, "scaled": up * beside.gate(up, up)}


def block(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    plain = Block(
        config["dim"],
        config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        qkv_bias=config["qkv_bias"],
        norm_epsilon=config["ln_eps"],
        rngs=nnx.Rngs(0),
    )
    model: Any = Stack([plain])
    if config.get("adapt", False):
        model = adapters.apply(model, "patchwise_scale", **scale_options(config))
    model = imported(model, {f"blocks.0.{name}": value for name, value in params.items()})
    grafted = model.blocks[0]
    outputs = {"y": grafted(inputs["x"])}
    if config.get("patch_wise_scalar", False):
        x = inputs["x"] + grafted.attn(inputs["x"])
        outputs["token_scale"] = grafted.mlp.gated(x)[1]
    return outputs


def masked_autoencoder(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    rngs = nnx.Rngs(0)
    backbone: Any = ViT(
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
    if config.get("adapt", False):
        backbone = adapters.apply(backbone, "patchwise_scale", **scale_options(config))
    model = MaskedAutoencoder(
        backbone,
        MAEDecoder(
            config["embed_dim"],
            backbone.grid,
            config["patch_size"] ** 2 * config.get("in_chans", 3),
            width=config["decoder_embed_dim"],
            depth=config["decoder_depth"],
            num_heads=config["decoder_num_heads"],
            mlp_ratio=config["mlp_ratio"],
            norm_epsilon=config["ln_eps"],
            rngs=rngs,
        ),
    )
    model = imported(model, params)
    images = nhwc(inputs["imgs"])
    masking = random_masking(inputs["noise"], config["mask_ratio"])
    latent, prediction = model(images, masking)
    loss = model.loss(images, prediction, masking.mask, norm_pixels=config["norm_pix_loss"])
    return {
        "loss": loss,
        "pred": prediction,
        "latent": latent,
        "mask": masking.mask,
        "ids_restore": masking.restore_ids,
        "ids_keep": masking.keep_ids,
    }


def decoder(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    class Holder(nnx.Module):
        def __init__(self, decoder: nnx.Module):
            self.decoder = decoder

    side = config["img_size"] // config["patch_size"]
    patch_numbers = params["decoder_pred.bias"].shape[0]
    model = Holder(
        MAEDecoder(
            config["embed_dim"],
            (side, side),
            patch_numbers,
            width=config["decoder_embed_dim"],
            depth=config["decoder_depth"],
            num_heads=config["decoder_num_heads"],
            mlp_ratio=config["mlp_ratio"],
            norm_epsilon=config["ln_eps"],
            rngs=nnx.Rngs(0),
        )
    )
    model = imported(model, params)
    return {"pred": model.decoder(inputs["latent"], inputs["ids_restore"])}


def patchify_loss(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    patches = patchify(nhwc(inputs["imgs"]), config["patch_size"])
    target = normalise_patches(patches, config["eps"])
    return {
        "patches": patches,
        "target_norm": target,
        "loss_norm": masked_mse(inputs["pred"], target, inputs["mask"]),
        "loss_raw": masked_mse(inputs["pred"], patches, inputs["mask"]),
    }


def sincos(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    grid = (config["grid"], config["grid"])
    return {"table": sincos_table(config["dim"], grid, class_token=config["cls_token"])}


def interpolate(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    source, target = config["src_grid"], config["dst_grid"]
    table = resize_table(
        inputs["pos_embed"][0],
        (source, source),
        (target, target),
        num_extra=config.get("extra_tokens", 1),
    )
    return {"pos_embed": table[None]}


def learning_rate(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    rate = warmup_cosine(
        inputs["epoch"],
        peak=config["lr"],
        end=config["min_lr"],
        warmup=config["warmup_epochs"],
        total=config["epochs"],
    )
    return {"lr": rate}


MODULES = {
    "Adapter": adapter,
    "Block": block,
    "MaskedAutoencoderViT": masked_autoencoder,
    "MaskedAutoencoderViT.forward_decoder": decoder,
    "patchify/forward_loss": patchify_loss,
    "get_2d_sincos_pos_embed": sincos,
    "interpolate_pos_embed": interpolate,
    "adjust_learning_rate": learning_rate,
}
