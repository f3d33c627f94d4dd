"""Golden cases of CFPT's neck: partitions, position bias, attention, the whole of it."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from tests.golden_modules.fields import Fields, same
from tests.golden_modules.pad_models import Arrays, imported, nhwc, with_norms
from tests.golden_modules.programs import compiled
from vadapt.kernels import cross_layer_attention as kernel
from vadapt.necks.cfpt import CFPT
from vadapt.necks.cross_layer import CrossLayerBlock, CrossLayerPair, CrossLevelBias, index
from vadapt.partition import variables
from vadapt.weights.families.detection_necks import TABLE
from vadapt.weights.tables import revert


class Holder(nnx.Module):
    """Something where the name table expects it."""

    def __init__(self, **parts: Any):
        for name, part in parts.items():
            setattr(self, name, part)


def in_neck(pair: Any) -> Any:
    """A model that has of a neck one pair of blocks, or one of them."""
    return Holder(neck=Holder(pairs=nnx.List([pair])))


def numbered(arrays: Arrays, prefix: str) -> list[Any]:
    """Maps by their numbers, as vadapt takes them."""
    count = sum(name.startswith(prefix) for name in arrays)
    return [nhwc(arrays[f"{prefix}{i}"]) for i in range(count)]


def nchw(maps: Any, prefix: str, first: int = 0) -> Arrays:
    return {f"{prefix}{i}": x.transpose(0, 3, 1, 2) for i, x in enumerate(maps, start=first)}


def spatial_partition(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    count, outputs = config["layer_num"], {}
    grid = config["levels"][count - 1]["size"]
    sides, ratios = kernel.spatial_windows(count, config["beta"]), kernel.ratios(count)
    for level in config["levels"]:
        i, (h, w) = level["level"], level["size"]
        r, side, x = ratios[i], sides[i], nhwc(inputs[f"x{i}"])
        same(config, batch=x.shape[0], channels=x.shape[3])
        short = [r * (n - 1) - size + side for n, size in zip(grid, (h, w), strict=True)]
        same(level, window=side, stride=r, pad=[-(-n // 2) for n in short], size=[*x.shape[1:3]])
        part = functools.partial(kernel.cells, grid=tuple(grid), ratio=r, side=side)
        outputs[f"windows{i}"] = part(x)
        outputs |= nchw([kernel.summed(part, inputs[f"tokens{i}"], x.shape)], "reverse", i)
    return outputs


def channel_partition(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    count, hidden, outputs = config["layer_num"], config["hidden_dim"], {}
    grid = (config["last_h"], config["last_w"])
    sizes, ratios = kernel.channel_windows(count, config["alpha"]), kernel.ratios(count)
    for level in config["levels"]:
        i = level["level"]
        r, size, x = ratios[i], sizes[i], nhwc(inputs[f"x{i}"])
        same(config, batch=x.shape[0], hidden_dim=x.shape[3] // 3)
        same(level, r=r, window=size, stride=r * r, pad=-(-(size - r * r) // 2))
        planes = kernel.planes(x, grid, r)
        cut = functools.partial(kernel.windows, axis=1, stride=r * r, size=size)
        found = cut(planes, count=3 * hidden)
        shape = (len(x), hidden * r * r, grid[0] * grid[1])
        folded = kernel.summed(functools.partial(cut, count=hidden), inputs[f"tokens{i}"], shape)
        spread = functools.partial(kernel.planes, grid=grid, ratio=r)
        outputs[f"unshuffle{i}"] = rearrange(planes, "b c (h w) -> b c h w", h=grid[0])
        outputs[f"windows{i}"] = rearrange(found, "b c n m -> b m n c")
        outputs[f"reverse{i}"] = rearrange(folded, "b c m -> b m c 1")
        outputs |= nchw([kernel.summed(spread, folded, (*x.shape[:3], hidden))], "shuffled", i)
    return outputs


def position_bias(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    spatial, windows = config["spatial"], config["window_size"]
    model = Holder(
        bias=CrossLevelBias(windows, config["num_heads"], spatial=spatial, rngs=nnx.Rngs(0))
    )
    kind = "spatial" if spatial else "channel"
    named = {f"neck.cross_layer_{kind}_attn.pos_embed.{k}": v for k, v in params.items()}
    bias = imported(in_neck(Holder(**{kind: model})), named).neck.pairs[0]
    bias = getattr(bias, kind).bias
    tokens = [w**2 if spatial else w for w in windows]
    level = jnp.repeat(bias.levels[...], np.array(tokens), axis=0, total_repeat_length=sum(tokens))
    return {
        "bias": (bias() + level.T[:, :, None])[None, :, None],
        "index": index(windows, spatial),
    }


def options(config: Fields) -> dict[str, Any]:
    return {
        "num_heads": config["num_heads"],
        "mlp_ratio": config["mlp_ratio"],
        "reduction": config["reduction"],
        "rngs": nnx.Rngs(0),
    }


def block(config: Fields, params: Arrays, inputs: Arrays, *, spatial: bool) -> Arrays:
    maps, count = numbered(inputs, "x"), config["layer_num"]
    overlap, ratios = config["beta" if spatial else "alpha"], kernel.ratios(count)
    windows = (kernel.spatial_windows if spatial else kernel.channel_windows)(count, overlap)
    strides = [r if spatial else r * r for r in ratios]
    same(config, sizes=[[*x.shape[1:3]] for x in maps])
    same(config, window_sizes=[*windows], strides=strides)
    made = CrossLayerBlock(
        config["in_dim"], count, spatial=spatial, overlap=overlap, **options(config)
    )
    kind = "spatial" if spatial else "channel"
    named = {f"neck.cross_layer_{kind}_attn.{name}": value for name, value in params.items()}
    model = imported(in_neck(Holder(**{kind: made})), named)
    return nchw(getattr(model.neck.pairs[0], kind)(maps), "y")


def pair(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    maps = numbered(inputs, "x")
    same(config, sizes=[[*x.shape[1:3]] for x in maps])
    made = CrossLayerPair(
        config["dim"],
        config["layer_num"],
        alpha=config["alpha"],
        beta=config["beta"],
        **options(config),
    )
    named = {f"neck.{_of_neck(name)}": value for name, value in params.items()}
    return nchw(imported(in_neck(made), named).neck.pairs[0](maps), "y")


def _of_neck(name: str) -> str:
    for short, whole in (("cca.", "channel"), ("csa.", "spatial")):
        if name.startswith(short):
            return f"cross_layer_{whole}_attn.{name.removeprefix(short)}"
    return name


def neck(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """The whole neck, and where it trains its statistics afterwards."""
    maps = [nhwc(inputs[f"c{i}"]) for i in range(2, 2 + len(config["in_channels"]))]
    made = CFPT(
        config["in_channels"],
        config["out_channels"],
        alpha=config["alpha"],
        beta=config["beta"],
        **options(config),
    )
    model = Holder(neck=made)
    model = imported(with_norms(model, config), {f"neck.{k}": v for k, v in params.items()})
    if config["training"]:
        model.train()
    outputs = nchw(model.neck(maps), "p", 3)
    state = {path: value[...] for path, value in variables(model).items()}
    named, _ = revert(state, TABLE)
    running = (name for name in named if ".bn.running_" in name)
    return outputs | {f"buffer/{name.removeprefix('neck.')}": named[name] for name in running}


MODULES = {
    "overlapped spatial partition and reverse": compiled(spatial_partition),
    "channel reconstruction + overlapped channel partition and reverse": compiled(
        channel_partition
    ),
    "CCPE spatial": position_bias,
    "CCPE channel": position_bias,
    "CrossLayerSpatialAttention": functools.partial(block, spatial=True),
    "CrossLayerChannelAttention": functools.partial(block, spatial=False),
    "CAM: x + CSA(CCA(x))": pair,
    "CFPT neck eval-mode BN": neck,
    "CFPT neck train-mode BN": neck,
}
