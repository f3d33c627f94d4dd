"""Golden cases of Rein's frozen backbones: DINOv2, CLIP's visual trunk, tables and conversion."""

from __future__ import annotations

import math
import re
from typing import Any

import jax.numpy as jnp
from flax import nnx

from tests.golden_modules.fields import Fields, only, same
from tests.golden_modules.pad_models import RELATIVE, Arrays, imported, nhwc
from tests.golden_modules.programs import compiled
from vadapt.backbones.convnext import ConvNeXt
from vadapt.backbones.resnet import ResNet
from vadapt.backbones.sam import SAMEncoder
from vadapt.backbones.teachers import Tower
from vadapt.backbones.vit import ViT
from vadapt.backbones.vit_families import CLIP, DINOV2
from vadapt.necks.pyramid import pyramid
from vadapt.nn.mlp import swiglu_hidden
from vadapt.nn.positions import resize_table
from vadapt.weights.load import match_weights

SWIGLU = {"mlp": False, "swiglufused": True}


def nchw(maps: Any) -> Any:
    """Maps as the original gives them."""
    return jnp.moveaxis(maps, -1, 1)


def build_dinov2(config: Fields, params: Arrays) -> ViT:
    """The trunk of a golden file's settings; blocks in chunks have names such as `blocks.0.3`."""
    chunked = any(re.search(r"\bblocks\.\d+\.\d+\.", name) for name in params)
    if (config.get("block_chunks", int(chunked)) > 0) != chunked:
        raise ValueError(f"block_chunks is {config['block_chunks']}, unlike the parameters' names")
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


def dinov2(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    model = imported(build_dinov2(config, params), params)
    taps = sorted(config["out_indices"])
    maps = model.features(nhwc(inputs["image"]), taps, as_grid=True, norm=False)
    return {f"feat{i}": nchw(x) for i, x in enumerate(pyramid(maps))}


def build_clip(config: Fields) -> Tower:
    """The trunk, with a last norm and a projection only where embeddings are asked for."""
    rngs = nnx.Rngs(0)
    embeds, projection = config["get_embeddings"], config["output_dim"]
    backbone = ViT(
        **CLIP,
        width=config["width"],
        depth=config["layers"],
        num_heads=config["heads"],
        patch_size=config["patch_size"],
        image_size=config["input_resolution"],
        position_resize="linear",
        class_token_twice=True,
        final_norm=embeds,
        drop_path_rate=config.get("drop_path_rate", 0.0),
        rngs=rngs,
    )
    return Tower(backbone, projection if embeds else None, rngs=rngs)


def clip(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
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


def build_eva02(config: Fields) -> ViT:
    """The trunk; its rotary tables are computed, whatever the file says of them."""
    only(config, xattn=(True, False))  # faster attention, the same numbers
    norm, extent = config["norm_layer"], config["pt_hw_seq_len"]
    only(norm, type=("LN",), requires_grad=(True, False))  # the trunk is frozen
    own, shared = config["use_rel_pos_bias"], config["use_shared_rel_pos_bias"]
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
        rotary_extent=extent if config["intp_freq"] else None,
        relative_positions=RELATIVE[own, shared],
        qkv_bias=config["qkv_bias"],
        key_bias=False,
        layer_scale=config["init_values"],
        drop_path_rate=config.get("drop_path_rate", 0.0),
        norm_epsilon=norm["eps"],
        final_norm=False,
        rngs=nnx.Rngs(0),
    )


def build_sam(config: Fields) -> SAMEncoder:
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


def build_convnext(config: Fields) -> ConvNeXt:
    only(config, gap_before_final_norm=(False,))
    return ConvNeXt(
        depths=config["arch"]["depths"],
        widths=config["arch"]["channels"],
        layer_scale=config["layer_scale_init_value"],
        normed=config["out_indices"],
        drop_path_rate=config.get("drop_path_rate", 0.0),
        rngs=nnx.Rngs(0),
    )


def build_resnet(config: Fields) -> ResNet:
    """The trunk; frozen, it takes its norms' stored statistics, whatever `norm_eval` says."""
    only(config, num_stages=(4,), style=("pytorch",), norm_eval=(True, False))
    only(config["norm_cfg"], type=("BN", "SyncBN"), requires_grad=(True, False))
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


def interpolate_positions(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    same(config, embed_dim=params["pos_embed"].shape[-1])
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


def convert(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    kernel, table = inputs["patch_embed_proj_weight"], inputs["pos_embed"]
    same(config, kernel_from=kernel.shape[-1], grid_from=math.isqrt(table.shape[1] - 1))
    files = {
        "patch_embed.proj.weight": kernel,
        "pos_embed": table,
    }
    rows, columns = config["grid_to"]
    side = config["kernel_to"]
    model = ViT(
        width=table.shape[-1],
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
    "dinov2_interpolate_pos_encoding": compiled(interpolate_positions),
    "convert_dinov2": convert,
}
