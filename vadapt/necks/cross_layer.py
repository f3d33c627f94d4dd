"""Blocks in which the levels of a pyramid attend to each other.

Source: CFPT, arXiv:2407.19696, and its released code.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vadapt.errors import ConfigError
from vadapt.kernels.cross_layer_attention import (
    channel_attention,
    channel_windows,
    spatial_attention,
    spatial_windows,
)
from vadapt.nn.activations import gelu_exact
from vadapt.nn.linear import uniform, uniform_linear
from vadapt.nn.mlp import Mlp
from vadapt.nn.norms import LayerNorm

Map = Float[Array, "b _ _ _"]


class CrossLevelBias(nnx.Module):
    """A bias of a group's tokens by their places relative to each other, from a table.

    Windows of all levels are laid over each other: a place is a multiple of w0 / w, for windows of
    w and, on the finest level, w0 places. So offsets are fractions, between two rows of the table.

    `levels` holds a bias of each query's level. As it is the same for all keys, softmax cancels it;
    it is there for files alone.

    Args:
        windows: of the levels, the finest first.
        spatial: windows are squares of this side; else they are lines, and so is the table.
        bilinear: offsets of squares are between four rows; else between the two that are next to
            the number of the row, which, where the offset in y is a fraction, are those of other
            offsets in x. Released weights were trained so.
    """

    def __init__(
        self,
        windows: Sequence[int],
        num_heads: int,
        *,
        spatial: bool,
        bilinear: bool = False,
        rngs: nnx.Rngs,
    ):
        self.windows, self.spatial, self.bilinear = tuple(windows), spatial, bilinear
        side = 2 * self.windows[0] - 1
        rows = side**2 if spatial else side
        # Released code cuts this at two, not at two standard deviations: that cuts nothing.
        init = nnx.initializers.normal(0.02)
        self.table = nnx.Param(init(rngs.params(), (rows, num_heads), jnp.float32))
        self.levels = nnx.Param(jnp.zeros((len(self.windows), num_heads), jnp.float32))

    def __call__(self) -> Float[Array, "heads n n"]:
        """In float32, whatever the type of the table."""
        rows, shares = taps(self.windows, self.spatial, self.bilinear)
        table = self.table[...].astype(jnp.float32)
        read = (
            jnp.asarray(share)[..., None] * table[row]
            for row, share in zip(rows, shares, strict=True)
        )
        return jnp.moveaxis(functools.reduce(jnp.add, read), 2, 0)


def offsets(windows: Sequence[int], spatial: bool) -> Float[np.ndarray, "axes n n"]:
    """Where, on each axis, a query lies relative to a key, from zero on; fractions.

    In float32 and in this order, as in released files: exact ones, rounded at the end, would differ
    by up to 3e-5, and gradients of the table by more than what else rounding does.

    The last level's places are not spread, as in released code; this matters where its window is
    larger than 1.
    """
    first, (*others, last) = np.float32(windows[0]), windows
    lines = [_centered(w) * first / np.float32(w) for w in others] + [_centered(last)]
    if spatial:
        grids = [np.meshgrid(line, line, indexing="ij") for line in lines]
        places = np.concatenate([np.reshape(grid, (2, -1)) for grid in grids], axis=1)
    else:
        places = np.concatenate(lines)[None]
    return places[:, :, None] - places[:, None] + (first - 1)


def _centered(window: int) -> Float[np.ndarray, "w"]:
    return (np.arange(window) - window // 2).astype(np.float32)


def index(windows: Sequence[int], spatial: bool) -> Float[np.ndarray, "n n"]:
    """The row of the table for a query and a key, a fraction."""
    found = offsets(windows, spatial)
    return found[0] * np.float32(2 * windows[0] - 1) + found[1] if spatial else found[0]


@functools.cache
def taps(windows: tuple[int, ...], spatial: bool, bilinear: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are read for a query and a key, and in what shares, [t, n, n] each."""
    axes = offsets(windows, spatial) if bilinear else index(windows, spatial)[None]
    rows, shares = np.zeros((1, 1, 1), int), np.ones((1, 1, 1), np.float32)
    for place in axes:
        low = np.floor(place).astype(int)
        near = np.stack([low, np.ceil(place).astype(int)])
        part = np.stack([1 - (place - low), place - low])
        side = 2 * windows[0] - 1
        rows = (rows[:, None] * side + near[None]).reshape(-1, *place.shape)
        shares = (shares[:, None] * part[None]).reshape(-1, *place.shape)
    return rows, shares


class PositionalConv(nnx.Module):
    """x + GELU(a convolution of each channel's 3x3 neighborhoods)."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        init = uniform(9**-0.5)
        self.conv = nnx.Conv(
            width,
            width,
            (3, 3),
            feature_group_count=width,
            kernel_init=init,
            bias_init=init,
            rngs=rngs,
        )

    def __call__(self, x: Map) -> Map:
        return x + gelu_exact(self.conv(x))


class LevelLayers(nnx.Module):
    """What one level has of a block: everything but the attention."""

    def __init__(self, width: int, hidden: int, mlp_hidden: int, *, rngs: nnx.Rngs):
        self.positions = nnx.List([PositionalConv(width, rngs=rngs) for _ in range(2)])
        self.qkv = uniform_linear(width, 3 * hidden, rngs=rngs)
        self.proj = uniform_linear(hidden, width, rngs=rngs)
        self.norms = nnx.List([LayerNorm(width, epsilon=1e-5) for _ in range(2)])
        self.mlp = Mlp(width, mlp_hidden, linear=uniform_linear, rngs=rngs)

    def enter(self, x: Map) -> tuple[Map, Map]:
        """The map that goes on, and its queries, keys and values."""
        x = self.positions[0](x)
        return x, self.qkv(x)

    def leave(self, x: Map, attended: Map) -> Map:
        """The map with what it attended to; the first norm is of the branch, behind it."""
        x = self.positions[1](x + self.norms[0](self.proj(attended)))
        return x + self.mlp(self.norms[1](x))


class CrossLayerBlock(nnx.Module):
    """Attention between levels, and an MLP on each; all but the bias is each level's own.

    Args:
        width: of all maps.
        levels: how many there are, at least 2.
        spatial: tokens are places (CSA); else they are planes of channels (CCA).
        overlap: of the windows, see `kernels.cross_layer_attention`: beta in space, alpha in
            channels.
        reduction: of the width, inside the attention.
        bilinear: see `CrossLevelBias`.

    Raises:
        ConfigError: sizes that do not go together.
    """

    def __init__(
        self,
        width: int,
        levels: int,
        *,
        spatial: bool,
        overlap: int = 1,
        num_heads: int = 4,
        reduction: int = 4,
        mlp_ratio: float = 2.0,
        bilinear: bool = False,
        rngs: nnx.Rngs,
    ):
        hidden = width // reduction
        if levels < 2 or overlap < 1 or not overlap % 2 or hidden % num_heads or not hidden:
            raise ConfigError(
                f"no cross-layer attention of {levels} levels, an overlap of {overlap}, {hidden} "
                f"channels ({width} by {reduction}) and {num_heads} heads: levels must be 2 or "
                "more, overlaps odd, and channels divisible by the heads"
            )
        self.spatial, self.overlap = spatial, overlap
        windows = (spatial_windows if spatial else channel_windows)(levels, overlap)
        self.bias = CrossLevelBias(
            windows, num_heads, spatial=spatial, bilinear=bilinear, rngs=rngs
        )
        inner = int(mlp_ratio * width)
        self.levels = nnx.List(
            [LevelLayers(width, hidden, inner, rngs=rngs) for _ in range(levels)]
        )

    def __call__(self, maps: Sequence[Map]) -> tuple[Map, ...]:
        entered = [level.enter(x) for level, x in zip(self.levels, maps, strict=True)]
        attend = spatial_attention if self.spatial else channel_attention
        attended = attend([qkv for _, qkv in entered], self.bias(), overlap=self.overlap)
        return tuple(
            level.leave(x, y)
            for level, (x, _), y in zip(self.levels, entered, attended, strict=True)
        )


class CrossLayerPair(nnx.Module):
    """x + CSA(CCA(x)): attention in channels, of overlap alpha, then in space, of beta."""

    def __init__(
        self,
        width: int,
        levels: int,
        *,
        alpha: int = 1,
        beta: int = 1,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        self.channel = CrossLayerBlock(
            width, levels, spatial=False, overlap=alpha, rngs=rngs, **options
        )
        self.spatial = CrossLayerBlock(
            width, levels, spatial=True, overlap=beta, rngs=rngs, **options
        )

    def __call__(self, maps: Sequence[Map]) -> tuple[Map, ...]:
        found = self.spatial(self.channel(maps))
        return tuple(x + y for x, y in zip(maps, found, strict=True))
