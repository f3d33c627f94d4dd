"""Swin: a transformer of stages, with attention in windows that shift from block to block.

Source: Swin Transformer, arXiv:2103.14030, and its released code.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vadapt.backbones.named import Backbone, without_positions
from vadapt.backbones.staged import Staged
from vadapt.errors import ConfigError, nearest
from vadapt.kernels.attention import attention
from vadapt.nn.activations import gelu_exact
from vadapt.nn.blocks import Block
from vadapt.nn.linear import xavier_linear
from vadapt.nn.norms import LayerNorm
from vadapt.nn.positions import relative_position_index
from vadapt.nn.tokens import Tokens
from vadapt.options import takes

VARIANTS: dict[str, dict[str, Any]] = {
    "micro": {"depths": (2, 2, 2, 2), "width": 24, "num_heads": (1, 2, 4, 8), "window": 4},
    "tiny": {"depths": (2, 2, 6, 2), "width": 96, "num_heads": (3, 6, 12, 24)},
    "small": {"depths": (2, 2, 18, 2), "width": 96, "num_heads": (3, 6, 12, 24)},
    "base": {"depths": (2, 2, 18, 2), "width": 128, "num_heads": (4, 8, 16, 32)},
    "large": {"depths": (2, 2, 18, 2), "width": 192, "num_heads": (6, 12, 24, 48)},
}
EPSILON = 1e-5  # of every norm
PATCH = 4  # side of the patches in pixels


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["grid", "before"])
@dataclasses.dataclass(frozen=True)
class Layout:
    """What a block is told of its tokens: how many stand before the patches, and their grid."""

    grid: tuple[int, int]
    before: int = 0


class WindowAttention(nnx.Module):
    """Self-attention of a map's windows, each for itself, with relative positions.

    Windows start at the top left; the map is padded to whole ones with zeros, which take part as
    keys, and rolled by `shift` where windows are to lie across the borders of the others: what was
    not adjacent before is masked. A map whose smaller side is the window's or less has windows of
    that side, and no shift. Tokens before the patches are part of every window, without positions
    or mask, and become the mean of what they are in each of an image's windows.

    Args:
        window: side of the windows; of smaller ones the table's inner part counts.
        always_partition: windows are whole, and shift, on maps of any size.
    """

    ROLES: ClassVar[dict[str, tuple[str, ...]]] = {"qkv": ("q", "k", "v"), "proj": ("attn_out",)}

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        window: int,
        shift: int,
        always_partition: bool = False,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.num_heads, self.window, self.shift = num_heads, window, shift
        self.always_partition = always_partition
        self.qkv = xavier_linear(width, 3 * width, use_bias=qkv_bias, rngs=rngs)
        self.proj = xavier_linear(width, width, use_bias=proj_bias, rngs=rngs)
        self.table = nnx.Param(jnp.zeros(((2 * window - 1) ** 2, num_heads), jnp.float32))

    def __call__(self, x: Float[Array, "b n d"], layout: Layout) -> Float[Array, "b n d"]:
        before, (height, width) = layout.before, layout.grid
        small = min(layout.grid) <= self.window and not self.always_partition
        side, shift = (min(layout.grid), 0) if small else (self.window, self.shift)
        patches = rearrange(x[:, before:], "b (h w) d -> b h w d", h=height)
        patches = jnp.pad(patches, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
        patches = jnp.roll(patches, (-shift, -shift), (1, 2)) if shift else patches
        rows, columns = patches.shape[1] // side, patches.shape[2] // side
        cut = {"i": rows, "j": columns}
        windows = rearrange(patches, "b (i h) (j w) d -> (b i j) (h w) d", **cut)
        if before:
            first = repeat(x[:, :before], "b p d -> (b n) p d", n=rows * columns)
            windows = jnp.concatenate([first, windows], axis=1)
        out = self._attend(windows, (rows, columns), side, shift, before)
        patches = rearrange(
            out[:, before:], "(b i j) (h w) d -> b (i h) (j w) d", **cut, h=side, w=side
        )
        patches = jnp.roll(patches, (shift, shift), (1, 2)) if shift else patches
        patches = rearrange(patches[:, :height, :width], "b h w d -> b (h w) d")
        if not before:
            return patches
        first = rearrange(out[:, :before], "(b n) p d -> b n p d", n=rows * columns).mean(axis=1)
        return jnp.concatenate([first, patches], axis=1)

    def _attend(
        self, x: Float[Array, "m n d"], number: tuple[int, int], side: int, shift: int, before: int
    ) -> Float[Array, "m n d"]:
        """Every token of a window with every other of it, for (rows, columns) of windows."""
        heads = rearrange(self.qkv(x), "m n (t h e) -> t m n h e", t=3, h=self.num_heads)
        mask = None
        if shift:
            seen = np.pad(same_region(number, side, shift), _front(before), constant_values=True)
            images = x.shape[0] // len(seen)
            mask = jnp.broadcast_to(seen, (images, *seen.shape)).reshape(-1, *seen.shape[1:])
        table, index = self.table[...], window_index(self.window, side)
        if before:  # a row of zeros for all pairs without positions
            table = jnp.pad(table, ((0, 1), (0, 0)))
            index = np.pad(index, _front(before)[1:], constant_values=len(table) - 1)
        out = attention(*heads, tables=[table], index=index, mask=mask)
        return self.proj(rearrange(out, "m n h e -> m n (h e)"))


def _front(before: int) -> tuple[tuple[int, int], ...]:
    return (0, 0), (before, 0), (before, 0)


def window_index(window: int, side: int) -> Int[np.ndarray, "n n"]:
    """Rows of a window's table for all pairs in a smaller window of this side, by their offsets."""
    rows, columns = np.divmod(np.arange(side * side), side)
    chosen = 1 + rows * window + columns
    return relative_position_index((window, window))[np.ix_(chosen, chosen)]


def same_region(number: tuple[int, int], side: int, shift: int) -> Bool[np.ndarray, "m n n"]:
    """Which places of each window of a rolled map lay side by side before it was rolled.

    Args:
        number: of windows, by rows and columns.
    """

    def regions(windows: int) -> np.ndarray:
        places = np.arange(windows * side)
        return (places >= (windows - 1) * side).astype(int) + (places >= windows * side - shift)

    grid = 3 * regions(number[0])[:, None] + regions(number[1])
    flat = rearrange(grid, "(i h) (j w) -> (i j) (h w)", h=side, w=side)
    return flat[:, :, None] == flat[:, None]


class Patches(nnx.Module):
    """Patches of 4x4 pixels through one linear map, and a norm; zeros fill up the last ones."""

    def __init__(self, inputs: int, width: int, *, rngs: nnx.Rngs):
        size = (PATCH, PATCH)
        self.proj = nnx.Conv(inputs, width, size, strides=PATCH, padding="VALID", rngs=rngs)
        self.norm = LayerNorm(width, epsilon=EPSILON)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return self.norm(self.proj(_filled(x, PATCH)))


class Merging(nnx.Module):
    """Four neighbours in one, column by column: a norm, and half of their channels.

    Zeros fill up odd rows and columns.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * width, epsilon=EPSILON)
        self.reduction = xavier_linear(4 * width, 2 * width, use_bias=False, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 e"]:
        merged = rearrange(_filled(x, 2), "b (h i) (w j) d -> b h w (j i d)", i=2, j=2)
        return self.reduction(self.norm(merged))

    def prompts(self, prompts: Float[Array, "b p d"]) -> Float[Array, "b p e"]:
        """Prompts as if each were its own four neighbours.

        Source: VPT, arXiv:2203.12119, released code.
        """
        return self.reduction(self.norm(jnp.tile(prompts, 4)))


def _filled(x: Float[Array, "b h w d"], step: int) -> Float[Array, "b h2 w2 d"]:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % step), (0, -x.shape[2] % step), (0, 0)))


class Swin(Staged):
    """Swin: stages of maps, each of half the size and twice the channels of the one before.

    Blocks take a map as a sequence of tokens, with prompts before it if a method adds some.

    Args:
        depths, num_heads: blocks and heads of every stage.
        width: channels of the first stage.
        window: side of the windows, of all stages or of each.
        always_partition: see `WindowAttention`; what detectors and segmenters are trained with.
        normed: the stages whose map leaves through a norm. Classifiers have that of the last stage;
            dense prediction has all, and blocks never see them.
        norm_epsilon: of the blocks' norms and of those of maps that leave.
        drop_path_rate: of the last block; grows linearly from 0 at the first.

    Raises:
        ConfigError: settings of unequal numbers of stages, a norm for a stage there is not, or
            a width that heads do not divide.

    >>> model = Swin(depths=(2, 1), width=4, num_heads=(1, 2), window=2, rngs=nnx.Rngs(0))
    >>> model.widths, model.strides
    ((4, 8), (4, 8))
    >>> model.features(jnp.zeros((1, 24, 30, 3)), (0, 1), as_grid=True)[1].shape
    (1, 3, 4, 8)
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        width: int,
        num_heads: Sequence[int],
        window: int | Sequence[int] = 7,
        always_partition: bool = False,
        normed: Collection[int] | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm_epsilon: float = EPSILON,
        activation: Callable[[Array], Array] = gelu_exact,
        drop_path_rate: float = 0.0,
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ):
        number = len(depths)
        normed = (number - 1,) if normed is None else normed
        windows = (window,) * number if isinstance(window, int) else tuple(window)
        self.widths = tuple(width * 2**i for i in range(number))
        _check(depths, num_heads, windows, normed, self.widths)
        self.stem_width, self.in_channels = width, in_channels
        self.strides = tuple(PATCH * 2**i for i in range(number))
        self.patch_embed = Patches(in_channels, width, rngs=rngs)
        self.merges = nnx.List([Merging(width, rngs=rngs) for width in self.widths[:-1]])
        step = drop_path_rate / max(sum(depths) - 1, 1)
        rates = (step * i for i in itertools.count())
        block = functools.partial(
            Block,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            norm_epsilon=norm_epsilon,
            activation=activation,
            rngs=rngs,
        )

        def stage(i: int) -> Any:
            attend = functools.partial(
                WindowAttention, window=windows[i], always_partition=always_partition
            )
            shifts = [j % 2 * (windows[i] // 2) for j in range(depths[i])]
            return nnx.List(
                [
                    block(
                        self.widths[i],
                        num_heads[i],
                        attention=functools.partial(attend, shift=shift),
                        drop_path_rate=next(rates),
                    )
                    for shift in shifts
                ]
            )

        self.stages = nnx.List([stage(i) for i in range(number)])
        self.norms = nnx.Dict(
            {str(i): LayerNorm(self.widths[i], epsilon=norm_epsilon) for i in sorted(normed)}
        )

    takes_prompts = True

    def enter(self, x: Float[Array, "b h w c"], stage: int) -> Float[Array, "b h2 w2 d"]:
        if stage:
            return self.merges[stage - 1](x)
        # The compute type is that of the weights, so that a step can cast both trees and be done.
        return self.patch_embed(x.astype(self.patch_embed.proj.kernel.dtype))

    def advance(self, x: Tokens, stage: int) -> Tokens:
        entered = self.enter(x.map, stage)
        grid = (entered.shape[1], entered.shape[2])
        tokens = Tokens(rearrange(entered, "b h w d -> b (h w) d"), grid=grid)
        if not x.num_prompts:
            return tokens
        return tokens.with_prompts(self.merges[stage - 1].prompts(x.prompts))

    def context(self, x: Tokens) -> tuple[Layout]:
        assert x.grid is not None
        return (Layout(x.grid, x.num_special + x.num_prompts),)

    def leave(self, x: Float[Array, "b *n d"], number: int) -> Float[Array, "b *n d"]:
        return self.norms[str(number)](x) if str(number) in self.norms else x


def _check(
    depths: Sequence[int],
    num_heads: Sequence[int],
    windows: Sequence[int],
    normed: Collection[int],
    widths: Sequence[int],
) -> None:
    number = len(depths)
    if {len(num_heads), len(windows)} != {number} or not set(normed) <= set(range(number)):
        raise ConfigError(
            f"{number} depths, {len(num_heads)} num_heads, {len(windows)} windows and norms for "
            f"the stages {tuple(normed)} do not fit together"
        )
    wrong = [(w, h) for w, h in zip(widths, num_heads, strict=True) if w % h]
    if wrong:
        raise ConfigError(f"width {wrong[0][0]} is not divisible by num_heads {wrong[0][1]}")


@takes(Swin)
def swin(variant: str, **options: Any) -> Swin:
    """A Swin of a named size; options override its fields (see `Swin`).

    >>> nnx.eval_shape(lambda: swin("tiny", rngs=nnx.Rngs(0))).widths
    (96, 192, 384, 768)
    """
    if variant not in VARIANTS:
        raise ConfigError(f"unknown Swin variant {variant!r}; {nearest(variant, VARIANTS)}")
    return Swin(**{**VARIANTS[variant], **options})


NAMED: dict[str, Backbone] = {
    f"swin_{size}": without_positions(
        functools.partial(swin, size), "Swin, arXiv:2103.14030"
    )._replace(others=({"window": 12},) if size in ("base", "large") else ())  # those of 384 px
    for size in VARIANTS
}
