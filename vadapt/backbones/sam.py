"""SAM's image encoder: a ViT over maps, with attention in windows and, in a few blocks, over all.

Source: Segment Anything, arXiv:2304.02643; the layout is ViTDet's, arXiv:2203.16527.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from vadapt.backbones.named import Backbone
from vadapt.backbones.vit import PatchEmbed, as_pair
from vadapt.errors import ConfigError, nearest
from vadapt.kernels.attention import attention
from vadapt.nn.blocks import Block
from vadapt.nn.drop import OptionalKey, split_key
from vadapt.nn.images import check_images
from vadapt.nn.linear import xavier_linear
from vadapt.nn.norms import LayerNorm
from vadapt.nn.positions import resize_relative, resize_table
from vadapt.nn.tokens import Tokens
from vadapt.nn.trunk import Passed, Trunk, block_numbers, run_blocks
from vadapt.options import takes

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {"width": 768, "depth": 12, "num_heads": 12, "global_blocks": (2, 5, 8, 11)},
    "large": {"width": 1024, "depth": 24, "num_heads": 16, "global_blocks": (5, 11, 17, 23)},
    "huge": {"width": 1280, "depth": 32, "num_heads": 16, "global_blocks": (7, 15, 23, 31)},
}


class MapAttention(nnx.Module):
    """Self-attention over a map, all of it or window by window, with relative positions.

    A query takes q.k / sqrt(d) + q.R_h[row - row' + h - 1] + q.R_w[column - column' + w - 1] of a
    key. Windows start at the top left; the map is padded to whole ones with zeros, which take part
    as keys.

    Args:
        grid: (rows, columns) of the maps that the tables R_h, R_w are made for; at another size
            they are resampled linearly. Windows have tables of their own size.
        window: side of the windows; None to see the whole map.
        relative_positions: whether there are such tables.
    """

    ROLES: ClassVar[dict[str, tuple[str, ...]]] = {"qkv": ("q", "k", "v"), "proj": ("attn_out",)}

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        window: int | None,
        relative_positions: bool = True,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.window = num_heads, window
        self.qkv = xavier_linear(width, 3 * width, use_bias=qkv_bias, rngs=rngs)
        self.proj = xavier_linear(width, width, use_bias=proj_bias, rngs=rngs)
        height_width = grid if window is None else (window, window)
        self.rel_pos_h, self.rel_pos_w = (
            _zeros(2 * side - 1, width // num_heads) if relative_positions else None
            for side in height_width
        )

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        if self.window is None:
            return self._attend(x)
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (0, -height % self.window), (0, -width % self.window), (0, 0)))
        rows, columns = x.shape[1] // self.window, x.shape[2] // self.window
        windows = rearrange(x, "b (i h) (j w) d -> (b i j) h w d", i=rows, j=columns)
        x = rearrange(self._attend(windows), "(b i j) h w d -> b (i h) (j w) d", i=rows, j=columns)
        return x[:, :height, :width]

    def _attend(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """Every place of a map with every other of it."""
        heads = rearrange(self.qkv(x), "b h w (t n d) -> t b h w n d", t=3, n=self.num_heads)
        queries, keys, values = heads
        queries, keys, values = (
            rearrange(y, "b h w n d -> b (h w) n d")
            for y in (*self._with_positions(queries, keys), values)
        )
        out = attention(queries, keys, values, scale=1.0)
        return self.proj(rearrange(out, "b (h w) n d -> b h w (n d)", h=x.shape[1]))

    def _with_positions(self, queries: Array, keys: Array) -> Iterator[Array]:
        """Queries and keys [b, h, w, n, d'] whose products are the logits, positions included.

        A query gets what it takes of every row and of every column, a key the one-hots of its own.
        """
        # Adding to the logits instead saves products but, as compiled for v5e, moves three times
        # the bytes and takes 2 (forward) to 5 times (backward) the memory on a map of 64x64.
        terms = [(queries * queries.shape[-1] ** -0.5, keys)]
        if self.rel_pos_h is not None and self.rel_pos_w is not None:
            height, width = keys.shape[1:3]
            rows, columns = (jnp.eye(side, dtype=keys.dtype) for side in (height, width))
            by_row = _offsets(self.rel_pos_h[...], height)
            by_column = _offsets(self.rel_pos_w[...], width)
            terms += [
                (jnp.einsum("bhwnd,hkd->bhwnk", queries, by_row), rows[None, :, None, None]),
                (jnp.einsum("bhwnd,wkd->bhwnk", queries, by_column), columns[None, None, :, None]),
            ]
        for side in zip(*terms, strict=True):
            whole = (jnp.broadcast_to(y, (*keys.shape[:-1], y.shape[-1])) for y in side)
            yield jnp.concatenate([*whole], axis=-1)


def _offsets(table: Float[Array, "r d"], side: int) -> Float[Array, "q k d"]:
    """The table's row for a query at q and a key at k, for any pair along one axis."""
    places = np.arange(side)
    return resize_relative(table, 2 * side - 1)[places[:, None] - places[None] + side - 1]


class MapBlock(Block):
    """A transformer block over maps [b, h, w, d]; `is_global` if its attention sees all of them."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        grid: tuple[int, int],
        window: int | None,
        relative_positions: bool = True,
        **options: Any,
    ):
        attention = functools.partial(
            MapAttention, grid=grid, window=window, relative_positions=relative_positions
        )
        super().__init__(width, num_heads, attention=attention, **options)
        self.is_global = window is None


class Neck(nnx.Module):
    """Fewer channels: 1x1 convolution, norm, 3x3 convolution, norm; no biases, no activation."""

    def __init__(self, width: int, channels: int, *, epsilon: float, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(width, channels, (1, 1), use_bias=False, rngs=rngs)
        self.norm1 = LayerNorm(channels, epsilon=epsilon)
        self.conv2 = nnx.Conv(channels, channels, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = LayerNorm(channels, epsilon=epsilon)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w e"]:
        return self.norm2(self.conv2(self.norm1(self.conv1(x))))


class SAMEncoder(Trunk):
    """SAM's image encoder. It has no class token and no norm after the last block.

    Args:
        global_blocks: numbers of the blocks that see the whole map; the others see windows.
        image_size: (height, width) in pixels that the position table is made for; other sizes
            are fed with the table resized (see `positions.resize_table`).
        relative_size: the same of the global blocks' relative tables; None for `image_size`.
        window: side of the windows, in patches.
        absolute_positions, relative_positions: whether there are these tables.
        position_resize: how the position table is resized, a key of `positions.RESIZES`.
        drop_path_rate: of the last block; grows linearly from 0 at the first.
        neck: channels after the neck; None for no neck.

    >>> size = {"width": 16, "num_heads": 2, "patch_size": 4, "image_size": (16, 8), "neck": 8}
    >>> model = SAMEncoder(depth=2, global_blocks=[1], window=2, **size, rngs=nnx.Rngs(0))
    >>> images = jnp.zeros((1, 16, 8, 3))
    >>> model(images).shape
    (1, 4, 2, 8)
    >>> model.features(images, layers=0, as_grid=True).shape
    (1, 4, 2, 16)
    """

    num_table_extra = 0  # rows of the position table that stand for no place

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        num_heads: int,
        global_blocks: Sequence[int],
        patch_size: int = 16,
        image_size: int | Sequence[int] = 1024,
        relative_size: int | Sequence[int] | None = None,
        window: int = 14,
        in_channels: int = 3,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        absolute_positions: bool = True,
        relative_positions: bool = True,
        position_resize: str = "cubic",
        norm_epsilon: float = 1e-6,
        drop_path_rate: float = 0.0,
        neck: int | None = 256,
        rngs: nnx.Rngs,
    ):
        if width % num_heads:
            raise ConfigError(f"width {width} is not divisible by num_heads {num_heads}")
        self.width, self.patch_size = width, patch_size
        self.in_channels = in_channels
        self.grid = _grid(image_size, patch_size)
        self.position_resize = position_resize
        self.patch_embed = PatchEmbed(width, patch_size, in_channels, rngs=rngs)
        rows = self.num_table_extra + self.grid[0] * self.grid[1]
        self.pos_embed = _zeros(rows, width) if absolute_positions else None
        block = functools.partial(
            MapBlock,
            width,
            num_heads,
            grid=_grid(image_size if relative_size is None else relative_size, patch_size),
            relative_positions=relative_positions,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            norm_epsilon=norm_epsilon,
            rngs=rngs,
        )
        everywhere = block_numbers(global_blocks, depth)
        self.blocks = nnx.List(
            [
                block(
                    window=None if i in everywhere else window,
                    drop_path_rate=drop_path_rate * i / max(depth - 1, 1),
                )
                for i in range(depth)
            ]
        )
        self.neck = None if neck is None else Neck(width, neck, epsilon=norm_epsilon, rngs=rngs)

    def embed(self, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw d"]:
        """Patches with positions."""
        check_images(images, self.in_channels)
        x = self.patch_embed(images)
        if self.pos_embed is None:
            return x
        height, width = x.shape[1:3]
        extra = self.num_table_extra
        table = resize_table(
            self.pos_embed[...],
            self.grid,
            (height, width),
            num_extra=extra,
            way=self.position_resize,
        )[extra:]
        return x + rearrange(table.astype(x.dtype), "(h w) d -> 1 h w d", h=height)

    @property
    def depth(self) -> int:
        return len(self.blocks)

    def run(
        self,
        images: Float[Array, "b h w c"],
        taps: Collection[int] = (),
        *,
        key: OptionalKey = None,
    ) -> Passed:
        """A pass up to the last of the taps, or to the end without taps; before the neck."""
        end = max(taps) + 1 if taps and self.plan is None else len(self.blocks)
        hooks = self.begin(images)
        return run_blocks(
            self.blocks[:end],
            Tokens(self.embed(hooks.look(images, self.glance))),
            plan=self.plan,
            hooks=hooks,
            taps=taps,
            keys=split_key(key, len(self.blocks)),
        )

    def __call__(
        self, images: Float[Array, "b h w c"], *, key: OptionalKey = None
    ) -> Float[Array, "b gh gw d"]:
        """Maps after the neck, or after the last block of a model without one.

        Args:
            images: normalised, any size that is a multiple of the patch size.
            key: given in training only, for what methods add to the blocks.
        """
        passed = self.run(images, key=key)
        x = self.outgoing(passed.x, self.depth - 1, passed.hooks).array
        return x if self.neck is None else self.neck(x)


def _grid(image_size: int | Sequence[int], patch_size: int) -> tuple[int, int]:
    height, width = as_pair(image_size)
    return height // patch_size, width // patch_size


def _zeros(rows: int, width: int) -> nnx.Param:
    return nnx.Param(jnp.zeros((rows, width), jnp.float32))


@takes(SAMEncoder)
def sam(variant: str, **options: Any) -> SAMEncoder:
    """SAM's encoder in a named size; options override its fields (see `SAMEncoder`).

    >>> sam("base", depth=1, global_blocks=[0], image_size=64, rngs=nnx.Rngs(0)).grid
    (4, 4)
    """
    if variant not in VARIANTS:
        raise ConfigError(f"unknown SAM variant {variant!r}; {nearest(variant, VARIANTS)}")
    return SAMEncoder(**{**VARIANTS[variant], **options})


NAMED = {
    f"sam_{size}": Backbone(
        functools.partial(sam, size), source="Segment Anything, arXiv:2304.02643"
    )
    for size in VARIANTS
}
