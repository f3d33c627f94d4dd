"""Mask2Former's pixel decoder: maps of three strides see each other by deformable attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from vadapt import remat
from vadapt.errors import ShapeError
from vadapt.kernels.deformable_attention import deformable_attention
from vadapt.nn.mlp import FeedForward
from vadapt.nn.norms import GroupNorm, LayerNorm
from vadapt.nn.positions import sine_positions
from vadapt.nn.resize import resize_bilinear

Map = Float[Array, "b _ _ _"]
CAFFE2_XAVIER = nnx.initializers.variance_scaling(1.0, "fan_in", "uniform")
NUM_LEVELS = 3  # of the encoder: strides 32, 16, 8


@jax.tree_util.register_static
class Sizes(tuple[tuple[int, int], ...]):
    """(rows, columns) of several maps; static where arrays are traced."""


class NormedConv(nnx.Module):
    """A convolution, then a group norm."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        side: int,
        num_groups: int,
        *,
        use_bias: bool,
        kernel_init: nnx.Initializer = CAFFE2_XAVIER,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            inputs, outputs, (side, side), use_bias=use_bias, kernel_init=kernel_init, rngs=rngs
        )
        self.norm = GroupNorm(outputs, num_groups)

    def __call__(self, x: Map) -> Map:
        return self.norm(self.conv(x))


class DeformableAttention(nnx.Module):
    """Tokens of several maps attend to a few places of each map, which they choose.

    At first every head looks into a direction of its own, and every place weighs the same.
    """

    def __init__(
        self, width: int, num_heads: int, *, num_levels: int, num_points: int, rngs: nnx.Rngs
    ):
        self.heads = (num_heads, num_levels, num_points)
        places = math.prod(self.heads)
        zeros, xavier = nnx.initializers.zeros, nnx.initializers.xavier_uniform()

        def directions(key: Array, shape: Sequence[int], dtype: object = jnp.float32) -> Array:
            angles = np.arange(num_heads) * 2 * np.pi / num_heads
            units = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
            units = units / np.abs(units).max(axis=-1, keepdims=True)
            steps = units[:, None, None] * np.arange(1, num_points + 1)[:, None]
            steps = np.broadcast_to(steps, (*self.heads, 2))
            return jnp.asarray(steps.reshape(shape), jnp.float32)

        def linear(outputs: int, kernel_init: nnx.Initializer, bias_init: nnx.Initializer = zeros):
            return nnx.Linear(
                width, outputs, kernel_init=kernel_init, bias_init=bias_init, rngs=rngs
            )

        self.sampling_offsets = linear(2 * places, zeros, directions)
        self.attention_weights = linear(places, zeros)
        self.value_proj, self.output_proj = linear(width, xavier), linear(width, xavier)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        positions: Float[Array, "b n d"],
        references: Float[Array, "#b n #l 2"],
        sizes: Sizes,
    ) -> Float[Array, "b n d"]:
        """The tokens plus what they read.

        Args:
            positions: added to the tokens where they choose, not to what is read.
            references: (x, y) of each token in each map, in 0 to 1.
            sizes: (rows, columns) of the maps, in the order of the tokens.
        """
        b, n, _ = x.shape
        heads, levels, points = self.heads
        placed = x + positions
        offsets = self.sampling_offsets(placed).astype(jnp.float32)
        offsets = offsets.reshape(b, n, heads, levels, points, 2)
        sides = jnp.asarray([size[::-1] for size in sizes], jnp.float32)[None, None, None, :, None]
        locations = references[:, :, None, :, None] + offsets / sides
        logits = self.attention_weights(placed).astype(jnp.float32).reshape(b, n, heads, -1)
        weights = jax.nn.softmax(logits, axis=-1).reshape(b, n, heads, levels, points)
        values = rearrange(self.value_proj(x), "b n (h d) -> b n h d", h=heads)
        read = deformable_attention(values, sizes, locations, weights).astype(x.dtype)
        return x + self.output_proj(rearrange(read, "b n h d -> b n (h d)"))


class EncoderLayer(nnx.Module):
    """Deformable attention and a feed-forward, each normed after it is added."""

    def __init__(self, width: int, num_heads: int, hidden: int, *, num_points: int, rngs: nnx.Rngs):
        self.attn = DeformableAttention(
            width, num_heads, num_levels=NUM_LEVELS, num_points=num_points, rngs=rngs
        )
        self.mlp = FeedForward(width, hidden, rngs=rngs)
        self.norms = nnx.List([LayerNorm(width, epsilon=1e-5) for _ in range(2)])

    def __call__(self, x: Array, positions: Array, references: Array, sizes: Sizes) -> Array:
        x = self.norms[0](self.attn(x, positions, references, sizes))
        return self.norms[1](x + self.mlp(x))


class PixelDecoder(nnx.Module):
    """Maps of strides 4 to 32 to maps that have seen each other, and features for masks.

    Args:
        inputs: widths of the maps of strides 4, 8, 16, 32.
        outputs: width of the mask features.

    Source: Mask2Former, arXiv:2112.01527, section 3.2.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        *,
        width: int = 256,
        outputs: int = 256,
        depth: int = 6,
        num_heads: int = 8,
        hidden: int = 1024,
        num_points: int = 4,
        num_groups: int = 32,
        rngs: nnx.Rngs,
    ):
        if len(inputs) != NUM_LEVELS + 1:
            raise ShapeError(
                f"maps of strides 4, 8, 16 and 32 are needed, got {len(inputs)}: name as many "
                "blocks in config.task.layers"
            )
        fine, *coarse = inputs
        xavier = nnx.initializers.xavier_uniform()
        self.input_convs = nnx.List(
            [
                NormedConv(d, width, 1, num_groups, use_bias=True, kernel_init=xavier, rngs=rngs)
                for d in reversed(coarse)
            ]
        )
        self.level_encoding = nnx.Param(jax.random.normal(rngs.params(), (NUM_LEVELS, width)))
        self.layers = nnx.List(
            [
                EncoderLayer(width, num_heads, hidden, num_points=num_points, rngs=rngs)
                for _ in range(depth)
            ]
        )
        self.lateral = NormedConv(fine, width, 1, num_groups, use_bias=False, rngs=rngs)
        self.output = NormedConv(width, width, 3, num_groups, use_bias=False, rngs=rngs)
        self.mask_feature = nnx.Conv(width, outputs, (1, 1), kernel_init=CAFFE2_XAVIER, rngs=rngs)

    def __call__(self, maps: Sequence[Map]) -> tuple[Map, tuple[Map, ...]]:
        """Mask features of stride 4, and maps of strides 32, 16, 8.

        Args:
            maps: of strides 4, 8, 16, 32, [b, h, w, inputs[i]] each; any sizes do.
        """
        fine, *coarse = maps
        levels = [conv(x) for conv, x in zip(self.input_convs, reversed(coarse), strict=True)]
        b, *_, width = levels[0].shape
        sizes = Sizes(map(size_of, levels))
        x = jnp.concatenate([x.reshape(b, -1, width) for x in levels], axis=1)
        encoding = [
            jnp.asarray(sine_positions(width, size).reshape(-1, width), x.dtype)
            + jnp.broadcast_to(row[None], (math.prod(size), width))
            for size, row in zip(sizes, self.level_encoding[...], strict=True)
        ]
        positions = jnp.broadcast_to(jnp.concatenate(encoding)[None], x.shape)
        references = jnp.asarray(np.concatenate([centres(size) for size in sizes]))[None, :, None]
        for layer in self.layers:
            x = remat.call(layer, x, positions, references, sizes)
        ends = np.cumsum([math.prod(size) for size in sizes])[:-1]
        memories = tuple(
            y.reshape(b, *size, width)
            for y, size in zip(jnp.split(x, ends, axis=1), sizes, strict=True)
        )
        y = self.lateral(fine)
        y = jax.nn.relu(self.output(y + resize_bilinear(memories[-1], size_of(y))))
        return self.mask_feature(y), memories


def size_of(x: Map) -> tuple[int, int]:
    """Rows and columns of a map."""
    _, height, width, _ = x.shape
    return height, width


def centres(size: tuple[int, int]) -> Float[np.ndarray, "n 2"]:
    """(x, y) of a map's pixels in raster order, in 0 to 1."""
    rows, columns = ((np.arange(side) + 0.5) / side for side in size)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    return np.stack([x.reshape(-1), y.reshape(-1)], axis=-1).astype(np.float32)
