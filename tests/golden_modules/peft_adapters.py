"""Golden cases of bottleneck adapters: AdaptFormer, Houlsby's and Pfeiffer's."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from tests.golden_modules.fields import Fields, only
from tests.golden_modules.pad import Beside, Place, Stack
from tests.golden_modules.pad_models import Arrays, imported, nhwc
from vadapt.adapters import adaptformer, houlsby, pfeiffer
from vadapt.adapters.adaptformer import AdaptFormerBranch
from vadapt.adapters.bottleneck import Bottleneck, LayerGate
from vadapt.backbones.vit import ViT
from vadapt.nn.blocks import Block, Branch
from vadapt.nn.norms import LayerNorm
from vadapt.weights.load import with_arrays


def scale_of(config: Fields) -> str | float:
    """The original's scalar: a number, which may be written as text, or a learned one."""
    scalar = config["scalar"]
    return "learnable" if scalar == "learnable_scalar" else float(scalar)


def adapter(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """The adapter alone, where a block has it."""
    only(config, act=("relu",))
    width, scale = config["dim"], scale_of(config)
    learnable = scale == "learnable"
    bottleneck = Bottleneck(
        width,
        config["bottleneck"],
        norm=config["layernorm"],
        norm_epsilon=config["ln_eps"],
        rngs=nnx.Rngs(0),
    )
    gate = LayerGate(1.0 if learnable else float(scale), learnable=learnable)
    model = Stack([Place(Beside(bottleneck, gate))])
    held = imported(model, {f"blocks.0.adaptmlp.{k}": x for k, x in params.items()}).blocks[0].mlp
    plain = Branch(nnx.Module(), nnx.Module())
    branch = AdaptFormerBranch(plain, held.adapter, held.gate, sequential=True)
    y = branch.added(inputs["x"])
    return {"y": inputs["x"] + y if config["add_residual"] else y}


def block(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, gelu=("exact",))
    model = Stack([plain_block(config, config["mlp_ratio"] * config["dim"])])
    model = adaptformer.apply(
        model,
        hidden=config["bottleneck"],
        scale=scale_of(config),
        option=config["option"],
        norm=config["layernorm"],
        norm_epsilon=config["adapter_ln_eps"],
    )
    model = imported(model, {f"blocks.0.{name}": value for name, value in params.items()})
    return {"y": model.blocks[0](inputs["x"])}


def plain_block(config: Fields, hidden: int) -> Block:
    return Block(
        config["dim"],
        config["heads"],
        mlp_hidden=hidden,
        norm_epsilon=config["ln_eps"],
        rngs=nnx.Rngs(0),
    )


def transformer(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, vpt=(False,))
    config["vpt_num"]  # of prompts that there are none of
    pooled, rngs = config["global_pool"], nnx.Rngs(0)
    model: Any = ViT(
        width=config["dim"],
        depth=config["depth"],
        num_heads=config["heads"],
        patch_size=config["patch"],
        image_size=config["img"],
        mlp_ratio=config["mlp_ratio"],
        final_norm=not pooled,
        rngs=rngs,
    )
    adapted = adaptformer.apply(model, hidden=config["bottleneck"], scale=scale_of(config))
    tokens = imported(adapted if config["adapter"] else model, params)(nhwc(inputs["x"]))
    if pooled:
        values = {"scale": params["fc_norm.weight"], "bias": params["fc_norm.bias"]}
        feature = with_arrays(LayerNorm(config["dim"], epsilon=1e-6), values)(
            tokens[:, 1:].mean(axis=1)
        )
    else:
        feature = tokens[:, 0]
    bias = jnp.broadcast_to(params["head.bias"], (len(feature), config["classes"]))
    return {"logits": feature @ params["head.weight"].T + bias}


def houlsby_adapter(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """The bottleneck with its residual; the file's matrices are vadapt's own way round."""
    only(config, act=("gelu tanh",))
    adapter = houlsby.bottleneck(config["dim"], config["bottleneck"], rngs=nnx.Rngs(0))
    values = {
        "down/kernel": params["weights1"],
        "down/bias": params["biases1"][0],
        "up/kernel": params["weights2"],
        "up/bias": params["biases2"][0],
    }
    return {"y": inputs["x"] + with_arrays(adapter, values)(inputs["x"])}


def pfeiffer_block(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, act=("gelu exact",))
    model = pfeiffer.apply(
        Stack([plain_block(config, config["mlp"])]), reduction=config["reduction"]
    )
    prefix = "enc.transformer.encoder.layer.0."
    model = imported(model, {prefix + name: value for name, value in params.items()})
    return {"y": model.blocks[0](inputs["x"])}


MODULES = {
    "Adapter": adapter,
    "ViT block": block,
    "VisionTransformer": transformer,
    "bottleneck adapter": houlsby_adapter,
    "ViT block with adapter after the MLP": pfeiffer_block,
}
