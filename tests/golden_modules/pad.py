"""Golden cases of PAD: each function builds one named module and computes its outputs."""

from __future__ import annotations

from typing import Any

from flax import nnx

from tests.golden_modules import pad_detection, pad_milan, pad_recipe, pad_roi, pad_segmentation
from tests.golden_modules.fields import Fields, only, same
from tests.golden_modules.pad_models import build_autoencoder, imported, nhwc, scale_options
from tests.golden_modules.programs import compiled
from vadapt import adapters
from vadapt.adapters.bottleneck import Bottleneck, LayerGate
from vadapt.heads.mae_decoder import MAEDecoder
from vadapt.losses.reconstruction import masked_mse, normalise_patches, patchify
from vadapt.nn.blocks import Block
from vadapt.nn.positions import resize_table, sincos_table
from vadapt.tasks.mae import random_masking
from vadapt.training.schedules import warmup_cosine

Arrays = dict[str, Any]


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


def adapter(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, act=("relu",))
    options = scale_options(config)
    bottleneck = Bottleneck(
        config["dim"],
        options["hidden"],
        norm=options["norm"],
        norm_epsilon=config["ln_eps"],
        dropout=config.get("dropout_train", 0.1),
        rngs=nnx.Rngs(0),
    )
    gate = None
    if options["scale"] != "patchwise":
        learnable = options["scale"] == "learnable"
        gate = LayerGate(0.5 if learnable else options["scale"], learnable=learnable)
    model = Stack([Place(Beside(bottleneck, gate))])
    named = {f"blocks.0.adaptmlp.{name}": value for name, value in params.items()}
    beside = imported(model, named).blocks[0].mlp
    up = beside.adapter(inputs["x"])
    return {"up": up} if gate is None else {"up": up, "scaled": up * beside.gate(up, up)}


def block(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, act=("gelu_exact",))
    options, adapt = scale_options(config), config.get("adapt", False)
    plain = Block(
        config["dim"],
        config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        qkv_bias=config["qkv_bias"],
        norm_epsilon=config["ln_eps"],
        rngs=nnx.Rngs(0),
    )
    model: Any = Stack([plain])
    if adapt:
        model = adapters.apply(model, "patchwise_scale", **options)
    model = imported(model, {f"blocks.0.{name}": value for name, value in params.items()})
    grafted = model.blocks[0]
    outputs = {"y": grafted(inputs["x"])}
    if adapt and options["scale"] == "patchwise":
        x = inputs["x"] + grafted.attn(inputs["x"])
        outputs["token_scale"] = grafted.mlp.gated(x)[1]
    return outputs


def masked_autoencoder(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    model = imported(build_autoencoder(config), params)
    images = nhwc(inputs["imgs"])
    masking = random_masking(inputs["noise"], config["mask_ratio"])
    same(config, len_keep=masking.keep_ids.shape[1])
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


def decoder(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
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


def patchify_loss(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    _, channels, *sides = inputs["imgs"].shape
    same(config, in_chans=channels, img_size=sides[0])
    only(config, ddof=(1,))
    patches = patchify(nhwc(inputs["imgs"]), config["patch_size"])
    target = normalise_patches(patches, config["eps"])
    return {
        "patches": patches,
        "target_norm": target,
        "loss_norm": masked_mse(inputs["pred"], target, inputs["mask"]),
        "loss_raw": masked_mse(inputs["pred"], patches, inputs["mask"]),
    }


def sincos(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    grid = (config["grid"], config["grid"])
    return {"table": sincos_table(config["dim"], grid, class_token=config["cls_token"])}


def interpolate(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, mode=("bicubic",), a=(-0.75,), align_corners=(False,))
    same(config, dim=inputs["pos_embed"].shape[-1])
    source, target = config["src_grid"], config["dst_grid"]
    table = resize_table(
        inputs["pos_embed"][0],
        (source, source),
        (target, target),
        num_extra=config.get("extra_tokens", 1),
    )
    return {"pos_embed": table[None]}


def learning_rate(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
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
    "patchify/forward_loss": compiled(patchify_loss),
    "get_2d_sincos_pos_embed": sincos,
    "interpolate_pos_embed": compiled(interpolate),
    "load_checkpoint pos_embed": compiled(interpolate),
    "adjust_learning_rate": compiled(learning_rate),
    **pad_recipe.MODULES,
    **pad_roi.MODULES,
    **pad_milan.MODULES,
    **pad_segmentation.MODULES,
    **pad_detection.MODULES,
}
COUNTS = pad_recipe.COUNTS
