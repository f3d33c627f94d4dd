"""Golden cases of Rein's frozen backbones: DINOv2, CLIP's visual trunk, tables and conversion."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from tests.golden_modules.pad_models import Arrays, imported, nhwc
from vadapt.backbones.convnext import ConvNeXt
from vadapt.backbones.families import CLIP, DINOV2
from vadapt.backbones.layers import swiglu_hidden
from vadapt.backbones.positions import resize_table
from vadapt.backbones.resnet import ResNet
from vadapt.backbones.sam import SAMEncoder
from vadapt.backbones.teachers import Tower
from vadapt.backbones.vit import ViT
from vadapt.necks.pyramid import pyramid
from vadapt.weights.load import match_weights

SWIGLU = {"mlp": False, "swiglufused": True}


def nchw(maps: Any) -> Any:
    """Maps as the original gives them."""
    return jnp.moveaxis(maps, -1, 1)


def build_dinov2(config: dict[str, Any]) -> ViT:
    """The trunk of a golden file's settings; `block_chunks` is in the parameters' names."""
    swiglu = SWIGLU[config.get("ffn_layer", "mlp")]
    hidden = int(config["embed_dim"] * config.get("mlp_ratio", 4))
    return ViT(
        **{
            **DINOV2,
            "width": config["embed_dim"],
            "depth": config["depth"],
            "num_heads": config["num_heads"],
            "patch_size": config["patch_size"],
            "image_size": config["img_size"],
            "in_channels": config.get("in_chans", 3),
            "mlp_hidden": swiglu_hidden(hidden) if swiglu else hidden,
            "swiglu": swiglu,
            "qkv_bias": config.get("qkv_bias", True),
            "proj_bias": config.get("proj_bias", True),
            "mlp_bias": config.get("ffn_bias", True),
            "layer_scale": config["init_values"],
        },
        rngs=nnx.Rngs(0),
    )


def dinov2(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    model = imported(build_dinov2(config), params)
    taps = sorted(config["out_indices"])
    maps = model.features(nhwc(inputs["image"]), taps, as_grid=True, norm=False)
    return {f"feat{i}": nchw(x) for i, x in enumerate(pyramid(maps))}


def build_clip(config: dict[str, Any]) -> Tower:
    """The trunk, with a last norm and a projection only where embeddings are asked for."""
    rngs = nnx.Rngs(0)
    backbone = ViT(
        **CLIP,
        width=config["width"],
        depth=config["layers"],
        num_heads=config["heads"],
        patch_size=config["patch_size"],
        image_size=config["input_resolution"],
        position_resize="linear",
        class_token_twice=True,
        final_norm=config["get_embeddings"],
        rngs=rngs,
    )
    return Tower(backbone, config["output_dim"] if config["get_embeddings"] else None, rngs=rngs)


def clip(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    tower = imported(build_clip(config), params)
    images = nhwc(inputs["image"])
    taps = sorted(config["out_indices"])
    maps = tower.backbone.features(images, taps, as_grid=True, norm=False)
    outputs = {f"feat{i}": nchw(x) for i, x in enumerate(maps)}
    if config["get_embeddings"]:
        tokens, _ = tower(images)
        visual = tokens[:, 1:].reshape(*maps[0].shape[:-1], -1)
        outputs |= {"global_embedding": tokens[:, 0], "visual_embedding": nchw(visual)}
    return outputs


def build_eva02(config: dict[str, Any]) -> ViT:
    """The trunk; its rotary tables are computed, whatever the file says of them."""
    relative = {
        (True, False): "each",
        (False, True): "shared",
        (False, False): None,
    }[config["use_rel_pos_bias"], config["use_shared_rel_pos_bias"]]
    return ViT(
        width=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        patch_size=config["patch_size"],
        image_size=config["img_size"],
        in_channels=config["in_chans"],
        mlp_ratio=config["mlp_ratio"],
        swiglu=config["naiveswiglu"],
        mlp_norm=config["subln"],
        positions="learned" if config["use_abs_pos_emb"] else "none",
        rotary="pairs" if config["rope"] else None,
        rotary_extent=config["pt_hw_seq_len"] if config["intp_freq"] else None,
        relative_positions=relative,
        qkv_bias=config["qkv_bias"],
        key_bias=False,
        layer_scale=config["init_values"],
        norm_epsilon=config["norm_layer"]["eps"],
        final_norm=False,
        rngs=nnx.Rngs(0),
    )


def build_sam(config: dict[str, Any]) -> SAMEncoder:
    """The trunk; the tables of its global blocks have 4 g - 1 rows for a grid of g."""
    return SAMEncoder(
        width=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        global_blocks=config["global_attn_indexes"],
        patch_size=config["patch_size"],
        image_size=config["img_size"],
        relative_size=2 * config["img_size"],
        window=config["window_size"],
        mlp_ratio=config["mlp_ratio"],
        qkv_bias=config["qkv_bias"],
        absolute_positions=config["use_abs_pos"],
        relative_positions=config["use_rel_pos"],
        neck=None,
        rngs=nnx.Rngs(0),
    )


def build_convnext(config: dict[str, Any]) -> ConvNeXt:
    return ConvNeXt(
        depths=config["arch"]["depths"],
        widths=config["arch"]["channels"],
        layer_scale=config["layer_scale_init_value"],
        normed=config["out_indices"],
        rngs=nnx.Rngs(0),
    )


def build_resnet(config: dict[str, Any]) -> ResNet:
    return ResNet(
        config["depth"],
        base_width=config["base_channels"],
        stem_width=config["stem_channels"],
        deep_stem=True,
        strides=config["strides"],
        dilations=config["dilations"],
        contract_dilation=config["contract_dilation"],
        rngs=nnx.Rngs(0),
    )


def interpolate_positions(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    grid, patch = config["grid"], config["patch_size"]
    return {
        f"pos_{height}x{width}": resize_table(
            params["pos_embed"][0],
            (grid, grid),
            (height // patch, width // patch),
            way=DINOV2["position_resize"],
        )[None]
        for height, width in config["sizes"]
    }


def convert(config: dict[str, Any], params: Arrays, inputs: Arrays) -> Arrays:
    files = {
        "patch_embed.proj.weight": inputs["patch_embed_proj_weight"],
        "pos_embed": inputs["pos_embed"],
    }
    rows, columns = config["grid_to"]
    side = config["kernel_to"]
    model = ViT(
        width=inputs["pos_embed"].shape[-1],
        depth=0,
        num_heads=1,
        patch_size=side,
        image_size=(side * rows, side * columns),
        rngs=nnx.Rngs(0),
    )
    values, _ = match_weights(model, files, allow_missing=[".*"])
    return {
        "patch_embed_proj_weight": values["patch_embed/proj/kernel"].transpose(3, 2, 0, 1),
        "pos_embed": values["pos_embed"][None],
    }


MODULES = {
    "DinoVisionTransformer": dinov2,
    "CLIPVisionTransformer": clip,
    "dinov2_interpolate_pos_encoding": interpolate_positions,
    "convert_dinov2": convert,
}
