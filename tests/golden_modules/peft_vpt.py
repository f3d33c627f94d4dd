"""Golden cases of VPT: prompts in a ViT, in MAE's with its pooled tokens, and in Swin."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from tests.golden_modules.fields import Fields, only, same
from tests.golden_modules.pad_models import Arrays, imported, nhwc
from vadapt.adapters import vpt
from vadapt.backbones.swin import EPSILON, PATCH, Swin
from vadapt.backbones.vit import ViT
from vadapt.heads.linear import pooled
from vadapt.nn.norms import LayerNorm


def prompted(config: Fields, params: Arrays, model: Any, project: int = -1) -> Any:
    """The backbone with the prompts of a golden file, and its numbers."""
    model = vpt.apply(
        model,
        num_tokens=config["num_tokens"],
        deep=config["deep"],
        project=None if project == -1 else project,
    )
    return imported(model, params)


def prompted_vit(config: Fields, params: Arrays) -> Any:
    """VPT's ViT of a golden file, with its prompts."""
    only(config, gelu=("exact",))
    model = ViT(
        width=config["dim"],
        depth=config["depth"],
        num_heads=config["heads"],
        patch_size=config["patch"],
        image_size=config["img_size"],
        mlp_hidden=config["mlp"],
        norm_epsilon=config["ln_eps"],
        rngs=nnx.Rngs(0),
    )
    return prompted(config, params, model, config["project"])


def vit(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    model = prompted_vit(config, params)
    passed = model.run(nhwc(inputs["x"]))
    encoded = model.leave(passed.x.array, -1)
    same(config, num_classes=len(params["head.bias"]))
    logits = encoded[:, 0] @ params["head.weight"].T
    logits = logits + jnp.broadcast_to(params["head.bias"], logits.shape)
    return {"encoded": encoded, "logits": logits}


def mae(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    model = ViT(
        width=config["dim"],
        depth=config["depth"],
        num_heads=config["heads"],
        patch_size=config["patch"],
        image_size=config["img"],
        mlp_ratio=config["mlp_ratio"],
        norm_epsilon=config["ln_eps"],
        final_norm=False,
        rngs=nnx.Rngs(0),
    )
    trunk = {name: value for name, value in params.items() if not name.startswith("fc_norm.")}
    maps, outputs = prompted(config, trunk, model).extract(nhwc(inputs["x"]), as_grid=True)
    norm = LayerNorm(config["dim"], epsilon=config["ln_eps"])
    norm.scale[...], norm.bias[...] = params["fc_norm.weight"], params["fc_norm.bias"]
    return {"feat": norm(pooled(maps, outputs["prompts"], config["pool"]))}


def swin(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, patch=(PATCH,), ln_eps=(EPSILON,))
    side, windows = config["img"] // PATCH, []
    for _ in config["depths"]:
        windows.append(min(config["window"], side))
        side //= 2
    hidden = params["layers.0.blocks.0.mlp.fc1.weight"].shape[0]
    model = Swin(
        depths=config["depths"],
        width=config["embed_dim"],
        num_heads=config["heads"],
        window=windows,
        mlp_ratio=hidden / config["embed_dim"],
        rngs=nnx.Rngs(0),
    )
    maps, outputs = prompted(config, params, model).extract(nhwc(inputs["x"]), as_grid=True)
    return {"feat": pooled(maps, outputs["prompts"], "original")}


MODULES = {
    "PromptedVisionTransformer (ViT, eval mode)": vit,
    "MAE-ViT prompted": mae,
    "PromptedSwinTransformer": swin,
}
