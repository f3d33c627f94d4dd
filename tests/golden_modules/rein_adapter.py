"""Golden cases of Rein: the module alone, in backbones, and the necks that train with it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import nnx

from tests.golden_modules.fields import Fields, only, same
from tests.golden_modules.pad_models import Arrays, imported, nhwc
from tests.golden_modules.rein_backbones import (
    build_clip,
    build_convnext,
    build_dinov2,
    build_eva02,
    build_resnet,
    build_sam,
    nchw,
)
from vadapt.adapters import rein
from vadapt.backbones.staged import Staged
from vadapt.necks.learned import Deconvolutions, MultiLevelNeck
from vadapt.necks.pyramid import pyramid
from vadapt.nn.tokens import Tokens


class Parts(nnx.Module):
    """A model of a backbone and a neck, either of which may be None."""

    def __init__(self, backbone: Any, neck: Any):
        self.backbone, self.neck = backbone, neck


class Grafted(nnx.Module):
    """A backbone of which Rein is all there is."""

    def __init__(self, adapter: rein.Rein):
        self.adapter = adapter


def rein_options(config: Fields) -> dict[str, Any]:
    """The options of `rein.apply` from the original's settings."""
    only(config, type=("Reins", "LoRAReins"))
    kind = config.get("type", "LoRAReins" if "lora_dim" in config else "Reins")
    query_width = config.get("query_dims", 256)
    return {
        "num_tokens": config.get("token_length", 100),
        "rank": config.get("lora_dim", 16) if kind == "LoRAReins" else None,
        "query_width": query_width if config["link_token_to_query"] else None,
        "softmax": config.get("use_softmax", True),
        "start": "zero" if config.get("zero_mlp_delta_f", False) else "released",
        "scale": config.get("scale_init", 0.001),
        "patch_size": config.get("patch_size", 16),
    }


def grafted(trunk: Any, config: Fields, **options: Any) -> Any:
    """A trunk with Rein by its settings, which say how many layers it has and how wide they are."""
    settings = config["reins_config"]
    model = rein.apply(trunk, **rein_options(settings), **options)
    if isinstance(model, Staged):
        stages = zip(config["distinct_cfgs"], model.adapter, model.widths, strict=True)
    else:
        stages = [(settings, model.adapter, model.width)]
    for sizes, adapter, width in stages:
        same(sizes, num_layers=len(adapter.layers), embed_dims=width)
    return model


def reins(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """Every layer's features pass through its Rein; blocks that do nothing stand before."""
    layers = range(config["num_layers"])
    adapter = rein.Rein(
        layers,
        config["embed_dims"],
        **rein_options(config),
        rngs=nnx.Rngs(0),
    )
    named = {f"reins.{name}": value for name, value in params.items()}
    adapter = imported(Grafted(adapter), named).adapter
    feats = inputs["feats"] if config["batch_first"] else jnp.swapaxes(inputs["feats"], 1, 2)
    special, shared = int(config["has_cls_token"]), adapter.start(jnp.zeros((1, 8, 8, 3)))
    refined = jnp.stack(
        [adapter.after(i, Tokens(feats[i], special), shared)[0].array for i in layers]
    )
    outputs = {"feats": refined if config["batch_first"] else jnp.swapaxes(refined, 1, 2)}
    return {**outputs, "query": adapter.queries()} if adapter.transform is not None else outputs


def adapted(
    trunk: Any,
    config: Fields,
    params: Arrays,
    inputs: Arrays,
    **options: Any,
) -> Arrays:
    """Maps and queries of a trunk with Rein; stages give maps of four sizes themselves."""
    model = imported(grafted(trunk, config, **options), params)
    taps, staged = sorted(config["out_indices"]), isinstance(trunk, Staged)
    maps = model.features(nhwc(inputs["image"]), taps, as_grid=True, norm=staged)
    maps = {f"feat{i}": nchw(x) for i, x in enumerate(maps if staged else pyramid(maps))}
    return {**maps, **linked_queries(model, config)}


def linked_queries(model: Any, config: Fields) -> Arrays:
    """The queries of a trunk whose tokens are linked to some."""
    return {"query": rein.queries(model)} if config["reins_config"]["link_token_to_query"] else {}


def dinov2(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    return adapted(build_dinov2(config, params), config, params, inputs)


def eva02(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    return adapted(build_eva02(config), config, params, inputs)


def sam(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    layers = config["global_attn_indexes"]
    return adapted(build_sam(config), config, params, inputs, layers=layers)


def convnext(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    return adapted(build_convnext(config), config, params, inputs)


def resnet(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    return adapted(build_resnet(config), config, params, inputs)


def clip(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, get_embeddings=(False,))
    trunk = build_clip(config).backbone
    model = Parts(
        grafted(trunk, config),
        Deconvolutions(config["width"], rngs=nnx.Rngs(0)),
    )
    model = imported(model, params)
    taps = sorted(config["out_indices"])
    maps = model.backbone.features(nhwc(inputs["image"]), taps, as_grid=True, norm=False)
    feats = {f"feat{i}": nchw(x) for i, x in enumerate(model.neck(maps))}
    return {**feats, **linked_queries(model.backbone, config)}


def multi_level_neck(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    neck = MultiLevelNeck(
        config["in_channels"],
        config["out_channels"],
        factors=config["scales"],
        rngs=nnx.Rngs(0),
    )
    named = {f"neck.{name}": value for name, value in params.items()}
    model = imported(Parts(None, neck), named)
    maps = model.neck([nhwc(inputs[f"feat{i}"]) for i in range(len(inputs))])
    return {f"out{i}": nchw(x) for i, x in enumerate(maps)}


MODULES = {
    "Reins": reins,
    "LoRAReins": reins,
    "ReinsDinoVisionTransformer": dinov2,
    "ReinsCLIPVisionTransformer": clip,
    "ReinsEVA2": eva02,
    "ReinsSAMViT": sam,
    "ReinsConvNeXt": convnext,
    "ReinsResNetV1c": resnet,
    "MultiLevelNeck": multi_level_neck,
}
