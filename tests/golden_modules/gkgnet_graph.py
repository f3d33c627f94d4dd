"""Golden cases of GKGNet's graph: nearest neighbours in groups, and the relative position bias."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from tests.golden_modules.fields import Fields, only
from tests.golden_modules.programs import compiled
from vadapt.backbones.vig import cells
from vadapt.kernels.group_knn import distances, group_knn
from vadapt.kernels.position_bias import PositionBias, position_bias
from vadapt.nn.positions import sincos_table

Arrays = dict[str, Any]


def neighbours(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    x, groups = inputs["x"], config["groups"]
    if config["bipartite"]:
        only(config, reduce=(1,))  # the sources are what the file gives
        targets, sources = (jnp.swapaxes(inputs[name], 1, 2) for name in "xy")
    else:
        targets = rearrange(x, "b c h w -> b (h w) c")
        sources = cells(targets, x.shape[2:], config["reduce"])
    bias = inputs["relative_pos"][0] if config["relative_pos"] else None
    options = {"groups": groups, "k": config["k"], "dilation": config["dilation"]}
    ids, _ = group_knn(targets, sources, **options, bias=bias)
    x, y = (rearrange(v, "b n (g w) -> b n g w", g=groups) for v in (targets, sources))
    near = jnp.zeros((x.shape[1], y.shape[1])) if bias is None else bias
    found = jax.vmap(lambda x, y: distances(x, y, near))(x, y)
    centres = jnp.broadcast_to(jnp.arange(ids.shape[2])[None, None, :, None], ids.shape)
    return {
        "nn_idx": rearrange(ids, "b g n k -> (b g) n k"),
        "center_idx": rearrange(centres, "b g n k -> (b g) n k"),
        "dist": rearrange(found, "b n g m -> (b g) n m"),
    }


def matrix(bias: Any) -> Any:
    return (bias.dense() if isinstance(bias, PositionBias) else bias)[None]


def relative_positions(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    found = {}
    for number, item in enumerate(config["items"]):
        grid = (item["grid"], item["grid"])
        options = {"channels": item["channels"], "trained": item["grid"]}
        options |= {"reduction": item["reduce"]}
        found[f"sincos{number}"] = sincos_table(item["channels"], grid, class_token=False)
        found[f"relative_pos{number}"] = matrix(position_bias(**options, size=grid))
        if "resize_to" in item:
            size = tuple(item["resize_to"])
            found[f"resized{number}"] = matrix(position_bias(**options, size=size))
    return found


MODULES = {"group_knn": compiled(neighbours), "relative_pos": compiled(relative_positions)}
