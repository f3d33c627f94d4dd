"""Golden cases of SSF: scales and shifts behind the layers of frozen backbones."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from tests.golden_modules.fields import Fields, only
from tests.golden_modules.pad_models import Arrays, imported, nhwc
from tests.golden_modules.rein_backbones import nchw
from vadapt.adapters import ssf
from vadapt.backbones.convnext import EPSILON, ConvNeXt
from vadapt.backbones.swin import Layout, Swin
from vadapt.backbones.vit import ViT


def plain_vit(config: Fields) -> ViT:
    """The backbone of a case, frozen."""
    only(config, gelu=("exact",))
    return ViT(
        width=config["dim"],
        depth=config["depth"],
        num_heads=config["heads"],
        patch_size=config["patch"],
        image_size=config["img_size"],
        mlp_ratio=config["mlp_ratio"],
        norm_epsilon=config["ln_eps"],
        rngs=nnx.Rngs(0),
    )


def vit(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    model = imported(
        ssf.apply(plain_vit(config)),
        {name: value for name, value in params.items() if not name.startswith("head.")},
    )
    features = model(nhwc(inputs["x"]))
    bias = jnp.broadcast_to(params["head.bias"], (len(features), config["classes"]))
    return {"features": features, "logits": features[:, 0] @ params["head.weight"].T + bias}


def convnext_block(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, mlp_ratio=(4,), ln_eps=(EPSILON,))
    trunk = ConvNeXt(
        depths=(1,), widths=(config["dim"],), normed=(), layer_scale=1.0, rngs=nnx.Rngs(0)
    )
    optional = ["downsamples/.*"] if config["layer_scale"] else ["downsamples/.*", ".*/gamma"]
    model = imported(
        ssf.apply(trunk, targets=["stages/.*"]),
        {f"stages.0.blocks.0.{name}": value for name, value in params.items()},
        allow_missing=optional,
    )
    return {"y": nchw(model.stages[0][0](nhwc(inputs["x"])))}


def swin_block(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """The second block of a stage has shifted windows, the first has not."""
    shift, (rows, columns) = config["shift"], config["resolution"]
    only(config, shift=(0, config["window"] // 2))
    trunk = Swin(
        depths=(2,),
        width=config["dim"],
        num_heads=(config["heads"],),
        window=config["window"],
        mlp_ratio=config["mlp_ratio"],
        norm_epsilon=config["ln_eps"],
        normed=(),
        rngs=nnx.Rngs(0),
    )
    number = int(shift > 0)
    model = imported(
        ssf.apply(trunk),
        {f"layers.0.blocks.{number}.{name}": value for name, value in params.items()},
        allow_missing=["patch_embed/.*", f"stages/0/{1 - number}/.*"],
    )
    return {"y": model.stages[0][number](inputs["x"], None, Layout((rows, columns), 0))}


MODULES = {
    "VisionTransformer(tuning_mode=ssf)": vit,
    "ConvNeXtBlock(tuning_mode=ssf)": convnext_block,
    "SwinTransformerBlock(tuning_mode=ssf)": swin_block,
}
