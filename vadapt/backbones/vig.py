"""Vision graph networks (ViG): every patch takes from the patches most like it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from vadapt.backbones.graphs import GraphBlock
from vadapt.backbones.named import IMAGENET, SCENES, Backbone
from vadapt.backbones.staged import Staged
from vadapt.errors import ConfigError, ShapeError, nearest
from vadapt.kernels.group_knn import Bias
from vadapt.kernels.position_bias import PositionBias, position_bias, table
from vadapt.nn.activations import gelu_exact
from vadapt.nn.convolutions import FAN_IN, ConvNorm
from vadapt.nn.drop import OptionalKey
from vadapt.nn.positions import resize_table
from vadapt.options import takes

ISOTROPIC: dict[str, Any] = {
    "stem_stride": 16,
    "reductions": (1,),
    "relative": None,
    "max_dilation": 10,
}
# The published sizes, and one for images of 64 px.
VARIANTS: dict[str, dict[str, Any]] = {
    "pvig_ti": {"widths": (48, 96, 240, 384), "depths": (2, 2, 6, 2)},
    "pvig_s": {"widths": (80, 160, 400, 640), "depths": (2, 2, 6, 2)},
    "pvig_m": {"widths": (96, 192, 384, 768), "depths": (2, 2, 16, 2)},
    "pvig_b": {"widths": (128, 256, 512, 1024), "depths": (2, 2, 18, 2)},
    "vig_ti": {**ISOTROPIC, "widths": (192,), "depths": (12,), "k": (9, 18)},
    "vig_s": {**ISOTROPIC, "widths": (320,), "depths": (16,), "k": (9, 18)},
    "vig_b": {**ISOTROPIC, "widths": (640,), "depths": (16,), "k": (9, 18)},
    "vig_micro": {
        "widths": (24, 48, 96, 128),
        "depths": (1, 1, 2, 1),
        "reductions": (2, 1, 1, 1),
        "k": (9, 4),
        "max_dilation": 1,
        "image_size": 64,
    },
}
RELATIVE = ("released", "geometric")


class Positions(nnx.Module):
    """A learned vector a place, added to the map; resized where the map has another size.

    Args:
        grid: rows and columns of places; `patch_size` pixels of the image are a step.
    """

    num_table_extra = 0

    def __init__(self, width: int, grid: tuple[int, int], patch_size: int):
        self.grid, self.patch_size = grid, patch_size
        self.pos_embed = nnx.Param(jnp.zeros((grid[0] * grid[1], width), jnp.float32))

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        _, h, w, _ = x.shape
        places = resize_table(self.pos_embed[...], self.grid, (h, w), num_extra=0)
        return x + jnp.broadcast_to(places.reshape(x.shape[1:]), x.shape)


def cells(x: Float[Array, "b n d"], size: tuple[int, int], side: int) -> Float[Array, "b m d"]:
    """Averages over cells of side x side places of a map, all in raster order.

    Rows and columns that do not fill a last cell are in none.

    Raises:
        ShapeError: a cell is larger than the map.
    """
    if side == 1:
        return x
    height, width = (places // side for places in size)
    if not height or not width:
        raise ShapeError(f"a map of {size[0]}x{size[1]} places has no cell of {side}x{side}")
    grid = rearrange(x, "b (h w) d -> b h w d", h=size[0])[:, : height * side, : width * side]
    parts = rearrange(grid, "b (h p) (w q) d -> b (h w) (p q) d", p=side, q=side)
    return parts.mean(axis=2)


class ViGBlock(GraphBlock):
    """A graph of the map's places and an MLP; neighbours are places, or averages of cells of them.

    Args:
        reduction: side of the cells; 1 for the places themselves, of which each is its own nearest.
        grid: rows and columns of the maps in training, of which the bias by relative position is
            made.
        relative: "released" for the bias that the published weights need, "geometric" for one that
            draws to where the cells are (see `position_bias`), or None for none.
        options: see `GraphBlock`.
    """

    def __init__(
        self,
        width: int,
        *,
        reduction: int = 1,
        grid: tuple[int, int],
        relative: str | None = "released",
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(width, **options, rngs=rngs)
        self.width, self.reduction, self.grid, self.relative = width, reduction, grid, relative

    def __call__(
        self, x: Float[Array, "b h w d"], key: OptionalKey = None
    ) -> Float[Array, "b h w d"]:
        _, h, w, _ = x.shape
        nodes = rearrange(x, "b h w d -> b (h w) d")
        pool = functools.partial(cells, size=(h, w), side=self.reduction)
        nodes, _ = self.update(nodes, pool, self.bias((h, w)), key)
        return nodes.reshape(x.shape)

    def bias(self, size: tuple[int, int]) -> Bias:
        """Return the bias of the distances on a map of this size.

        Raises:
            ShapeError: cells do not fill the map; the released bias has none of such a size.
        """
        if self.relative is None:
            return None
        side = self.reduction
        if size[0] % side or size[1] % side:
            raise ShapeError(
                f"a map of {size[0]}x{size[1]} places does not consist of cells of {side}x{side}; "
                "the sides of images must be multiples of a cell's (16 px in published pyramids)"
            )
        (h, w), geometric = self.grid, self.relative == "geometric"
        if size == self.grid:
            rows, columns = table(self.width, h), table(self.width, w)
            return PositionBias(rows, columns, self.reduction, geometric)
        trained = math.isqrt(h * w)
        return position_bias(
            self.width, trained, size, reduction=self.reduction, geometric=geometric
        )


class ViG(Staged):
    """A vision graph network: isotropic with one stage, a pyramid with several.

    Norms go by their stored statistics unless `train()` was called, see `convolutions.BatchNorm`;
    `features` has no output norms.

    Args:
        widths, depths: channels and blocks of every stage.
        groups: of channels, each with neighbours of its own; 1 is ViG, 2 GKGNet (arXiv:2308.14378).
        k: neighbours of a node in a group, or of those in the first and in the last block, between
            which it grows (or falls) linearly.
        max_dilation: the dilation, which is 1 in the first four blocks, 2 in the next four, and so
            on, is at most that. Published: (places of the last stage at 224 px) / k, rounded down.
        reductions: of every stage, see `ViGBlock`.
        relative: see `ViGBlock`.
        stem_stride: pixels a step in the first stage's map, a power of 2.
        image_size: (height, width) or one number for both, that positions are made for. Images
            may have any other size; a model that was trained at one wants to be tuned for another.
        drop_path_rate: of the last block; grows linearly from 0 at the first.

    Raises:
        ConfigError: settings of unequal numbers of stages, or ones that do not exist.

    Source: Vision GNN, arXiv:2206.00272, released code.

    >>> model = nnx.eval_shape(lambda: vig("pvig_ti", rngs=nnx.Rngs(0)))
    >>> model.widths, model.strides
    ((48, 96, 240, 384), (4, 8, 16, 32))
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        groups: int = 1,
        k: int | tuple[int, int] = 9,
        max_dilation: int = 5,
        reductions: Sequence[int] = (4, 2, 1, 1),
        relative: str | None = "released",
        stem_stride: int = 4,
        image_size: int | Sequence[int] = 224,
        drop_path_rate: float = 0.0,
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ):
        if not len(widths) == len(depths) == len(reductions):
            raise ConfigError(
                f"widths {tuple(widths)}, depths {tuple(depths)} and reductions "
                f"{tuple(reductions)} are not of as many stages"
            )
        if relative not in (None, *RELATIVE):
            raise ConfigError(f"unknown relative {relative!r}; {nearest(str(relative), RELATIVE)}")
        self.widths, self.stem_width = tuple(widths), widths[0]
        self.in_channels = in_channels
        self.strides = tuple(stem_stride * 2**i for i in range(len(widths)))
        sides = (image_size,) * 2 if isinstance(image_size, int) else image_size
        grids = [(-(-sides[0] // stride), -(-sides[1] // stride)) for stride in self.strides]
        self.stem = nnx.List(_stem(in_channels, widths[0], stem_stride, rngs))
        self.positions = Positions(widths[0], grids[0], stem_stride)
        self.downsamples = nnx.List([_conv(a, b, 2, rngs) for a, b in itertools.pairwise(widths)])
        numbers = iter(_schedule(sum(depths), k, max_dilation, drop_path_rate))

        def blocks(i: int) -> list[ViGBlock]:
            shared = {"groups": groups, "reduction": reductions[i], "relative": relative}
            return [
                ViGBlock(widths[i], grid=grids[i], **shared, **next(numbers), rngs=rngs)
                for _ in range(depths[i])
            ]

        self.stages = nnx.List([nnx.List(blocks(i)) for i in range(len(widths))])

    def enter(self, x: Float[Array, "b h w c"], stage: int) -> Float[Array, "b h2 w2 d"]:
        if stage:
            return self.downsamples[stage - 1](x)
        # The compute type is that of the weights, so that a step can cast both trees and be done.
        x = x.astype(self.stem[0].conv.kernel.dtype)
        *first, last = self.stem
        for layer in first:
            x = gelu_exact(layer(x))
        return self.positions(last(x))


def _schedule(
    number: int, k: int | tuple[int, int], max_dilation: int, drop_path_rate: float
) -> list[dict[str, Any]]:
    """Yield the options that differ from block to block."""
    first, last = (k, k) if isinstance(k, int) else k
    steps = max(number - 1, 1)
    return [
        {
            "k": first + i * (last - first) // steps,
            "dilation": min(i // 4 + 1, max_dilation),
            "drop_path_rate": drop_path_rate * i / steps,
        }
        for i in range(number)
    ]


def _conv(inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> ConvNorm:
    options: dict[str, Any] = {"activation": False, "use_bias": True, "kernel_init": FAN_IN}
    return ConvNorm(inputs, outputs, 3, stride=stride, **options, rngs=rngs)


def _stem(inputs: int, width: int, stride: int, rngs: nnx.Rngs) -> list[ConvNorm]:
    """Convolutions of stride 2 that double the channels, and one of stride 1."""
    halvings = stride.bit_length() - 1
    channels = [inputs, *(width >> (halvings - 1 - i) for i in range(halvings)), width]
    return [
        _conv(a, b, 2 if i < halvings else 1, rngs)
        for i, (a, b) in enumerate(itertools.pairwise(channels))
    ]


@takes(ViG)
def vig(variant: str, **options: Any) -> ViG:
    """A ViG of a named size; options override its fields (see `ViG`).

    >>> nnx.eval_shape(lambda: vig("vig_ti", rngs=nnx.Rngs(0))).strides
    (16,)
    """
    if variant not in VARIANTS:
        raise ConfigError(f"unknown ViG variant {variant!r}; {nearest(variant, VARIANTS)}")
    return ViG(**{**VARIANTS[variant], **options})


NAMED = {
    name: Backbone(
        functools.partial(vig, name),
        statistics=SCENES if name == "vig_micro" else IMAGENET,
        source="Vision GNN, arXiv:2206.00272",
    )
    for name in VARIANTS
}
