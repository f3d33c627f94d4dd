"""The plain vision transformer, with one place for a method to put something around its blocks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from vadapt.errors import ConfigError, ShapeError, nearest
from vadapt.nn.activations import gelu_exact
from vadapt.nn.attention import Attention, RelativeBias
from vadapt.nn.blocks import Block
from vadapt.nn.drop import OptionalKey, split_key
from vadapt.nn.hooks import Hook, Kept
from vadapt.nn.images import check_images
from vadapt.nn.linear import uniform
from vadapt.nn.norms import LayerNorm
from vadapt.nn.positions import Rotation, resize_table, rotary_angles, sincos_table
from vadapt.nn.tokens import Tokens
from vadapt.nn.trunk import Passed, Trunk, run_blocks
from vadapt.options import takes
from vadapt.partition import Constant

# Sizes of MAE (arXiv:2111.06377) and DeiT; micro is for laptops and tests.
VARIANTS: dict[str, dict[str, int]] = {
    "micro": {"width": 96, "depth": 6, "num_heads": 4, "patch_size": 8},
    "tiny": {"width": 192, "depth": 12, "num_heads": 3, "patch_size": 16},
    "small": {"width": 384, "depth": 12, "num_heads": 6, "patch_size": 16},
    "base": {"width": 768, "depth": 12, "num_heads": 12, "patch_size": 16},
    "large": {"width": 1024, "depth": 24, "num_heads": 16, "patch_size": 16},
    "huge": {"width": 1280, "depth": 32, "num_heads": 16, "patch_size": 14},
    # SigLIP's, named after its 400 million parameters.
    "so400m": {"width": 1152, "depth": 27, "num_heads": 16, "patch_size": 14, "mlp_hidden": 4304},
    "giant": {"width": 1536, "depth": 40, "num_heads": 24, "patch_size": 14},  # DINOv2's
}


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


class PatchEmbed(nnx.Module):
    """Non-overlapping patches, each through one linear map (a convolution with its own stride)."""

    def __init__(
        self,
        width: int,
        patch_size: int,
        in_channels: int,
        *,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.patch_size = patch_size
        # Xavier over (patch numbers, width): what MAE does, not a convolution's usual fan.
        patch_numbers = in_channels * patch_size**2
        limit = (6.0 / (patch_numbers + width)) ** 0.5
        bias_limit = patch_numbers**-0.5
        self.proj = nnx.Conv(
            in_channels,
            width,
            (patch_size, patch_size),
            strides=(patch_size, patch_size),
            padding="VALID",
            use_bias=use_bias,
            kernel_init=uniform(limit),
            bias_init=uniform(bias_limit),
            rngs=rngs,
        )

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b gh gw d"]:
        height, width = images.shape[-3:-1]
        if height % self.patch_size or width % self.patch_size:
            raise ShapeError(
                f"image is {height}x{width}, not a multiple of the patch size {self.patch_size}; "
                "resize or pad it"
            )
        # The compute type is that of the weights, so that a step can cast both trees and be done.
        return self.proj(images.astype(self.proj.kernel.dtype))


class ViT(Trunk):
    """A plain vision transformer (arXiv:2010.11929) with the options that checkpoints differ in.

    Args:
        image_size: (height, width) in pixels that the position table is made for; other sizes
            are fed with the table resized (see `positions.resize_table`).
        positions: "learned", "sincos" (fixed, as in MAE), or "none" (no table).
        position_resize: how the table is resized, a key of `positions.RESIZES`.
        num_registers: learned tokens without a position between class token and patches
            (arXiv:2309.16588).
        class_token_twice: the class token is added to its position a second time, as dense uses
            of CLIP do.
        rotary: queries and keys of patches turn by their place, "pairs" or "halves" (see
            `positions.rotary_angles`, `rotary_extent` too); None for none.
        relative_positions: a bias of the attention by offset: "each" block has its own, or one is
            "shared" by all, or "both" (they add); None for none. Such a model is good for its
            image_size alone.
        mlp_ratio, mlp_hidden: hidden width of the MLPs over `width`, or that width itself.
        swiglu, mlp_norm: gated MLPs, a norm inside them (see `mlp.SwiGLU`).
        qkv_bias, key_bias, proj_bias, mlp_bias: which linear layers have one; without
            `key_bias`, queries and values only.
        layer_scale: initial value of a learned factor per channel on both branches; None for none.
        drop_path_rate: of the last block; grows linearly from 0 at the first.
        final_norm: whether a norm follows the last block.
        first_norm, patch_bias, activation: a norm before the first block, a bias of the patch
            embedding, the MLPs' activation; CLIP's towers differ from the rest in all three.

    >>> import jax
    >>> size = {"width": 8, "depth": 2, "num_heads": 2, "patch_size": 4, "image_size": (16, 24)}
    >>> model = ViT(**size, rngs=nnx.Rngs(0))
    >>> images = jax.numpy.zeros((1, 16, 24, 3))
    >>> model(images).shape
    (1, 25, 8)
    >>> model.features(images, as_grid=True).shape
    (1, 4, 6, 8)
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        num_heads: int,
        patch_size: int = 16,
        image_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        mlp_ratio: float = 4.0,
        mlp_hidden: int | None = None,
        mlp_norm: bool = False,
        swiglu: bool = False,
        positions: str = "learned",
        position_resize: str = "cubic",
        rotary: str | None = None,
        rotary_extent: float | None = 16.0,
        relative_positions: str | None = None,
        class_token: bool = True,
        class_token_twice: bool = False,
        num_registers: int = 0,
        qkv_bias: bool = True,
        key_bias: bool = True,
        proj_bias: bool = True,
        mlp_bias: bool = True,
        layer_scale: float | None = None,
        drop_path_rate: float = 0.0,
        final_norm: bool = True,
        norm_epsilon: float = 1e-6,
        first_norm: bool = False,
        patch_bias: bool = True,
        activation: Callable[[Array], Array] = gelu_exact,
        rngs: nnx.Rngs,
    ):
        if width % num_heads:
            raise ConfigError(f"width {width} is not divisible by num_heads {num_heads}")
        self.width, self.patch_size, self.num_heads = width, patch_size, num_heads
        self.in_channels = in_channels
        height_px, width_px = as_pair(image_size)
        self.grid = (height_px // patch_size, width_px // patch_size)
        self.position_resize = position_resize
        self.rotary, self.rotary_extent = rotary, rotary_extent
        self.has_class_token, self.class_token_twice = class_token, class_token_twice
        self.patch_embed = PatchEmbed(
            width, patch_size, in_channels, use_bias=patch_bias, rngs=rngs
        )
        self.cls_token = _normal((width,), rngs) if class_token else None
        self.pos_embed = self._make_positions(positions, rngs)
        self.registers = _normal((num_registers, width), rngs) if num_registers else None
        self.first_norm = LayerNorm(width, epsilon=norm_epsilon) if first_norm else None
        block = functools.partial(
            Block,
            mlp_ratio=mlp_ratio,
            mlp_hidden=mlp_hidden,
            mlp_norm=mlp_norm,
            swiglu=swiglu,
            qkv_bias=qkv_bias,
            proj_bias=proj_bias,
            mlp_bias=mlp_bias,
            norm_epsilon=norm_epsilon,
            layer_scale=layer_scale,
            activation=activation,
            rngs=rngs,
        )
        attention = functools.partial(Attention, key_bias=key_bias, rotary=rotary)
        rates = (drop_path_rate * i / max(depth - 1, 1) for i in range(depth))
        biases = self._make_relative_biases(relative_positions, depth)
        self.blocks = nnx.List(
            [
                block(
                    width,
                    num_heads,
                    attention=functools.partial(attention, **own),
                    drop_path_rate=rate,
                )
                for rate, own in zip(rates, biases, strict=True)
            ]
        )
        self.norm = LayerNorm(width, epsilon=norm_epsilon) if final_norm else None

    def _make_positions(self, kind: str, rngs: nnx.Rngs) -> nnx.Variable | None:
        if kind == "none":
            return None
        if kind == "sincos":
            table = sincos_table(self.width, self.grid, class_token=self.cls_token is not None)
            return Constant(jnp.asarray(table))
        if kind == "learned":
            return _normal((self.num_table_extra + self.grid[0] * self.grid[1], self.width), rngs)
        known = ("learned", "sincos", "none")
        raise ConfigError(f"unknown positions {kind!r}; {nearest(kind, known)}")

    def _make_relative_biases(self, kind: str | None, depth: int) -> list[dict[str, RelativeBias]]:
        """The biases of each block's attention, by the option that takes them."""
        known = ("each", "shared", "both")
        if kind is not None and kind not in known:
            raise ConfigError(f"unknown relative_positions {kind!r}; {nearest(kind, known)}")

        def bias() -> RelativeBias:
            return RelativeBias(self.grid, self.num_heads)

        shared = {"shared_relative": bias()} if kind in ("shared", "both") else {}
        own = kind in ("each", "both")
        return [{**shared, "relative": bias()} if own else shared for _ in range(depth)]

    @property
    def depth(self) -> int:
        return len(self.blocks)

    takes_prompts = True

    @property
    def num_extra(self) -> int:
        """Tokens before the patches: the class token, then registers."""
        return self.num_table_extra + (0 if self.registers is None else self.registers.shape[0])

    @property
    def num_table_extra(self) -> int:
        """Rows of the position table before the patches': 1 with a class token."""
        return 0 if self.cls_token is None else 1

    def embed(
        self, images: Float[Array, "b h w c"], keep_ids: Int[Array, "b k"] | None = None
    ) -> Float[Array, "b n d"]:
        """Class token and patch tokens with positions, registers without; see `__call__`."""
        grid = self.patch_embed(images)
        height, width = grid.shape[1:3]
        table = self._table((height, width)).astype(grid.dtype)
        tokens = rearrange(grid, "b h w d -> b (h w) d")
        tokens = tokens + table[None, self.num_table_extra :]
        if keep_ids is not None:
            tokens = jnp.take_along_axis(tokens, keep_ids[..., None], axis=1)
        first = [
            jnp.broadcast_to(rows, (tokens.shape[0], *rows.shape[-2:]))
            for rows in self._first_tokens(table)
        ]
        tokens = jnp.concatenate([*first, tokens], axis=1)
        return tokens if self.first_norm is None else self.first_norm(tokens)

    def _table(self, grid: tuple[int, int]) -> Float[Array, "n d"]:
        """The position table at the size of an image's grid; zeros where there is none."""
        if self.pos_embed is None:
            return jnp.zeros((self.num_table_extra + grid[0] * grid[1], self.width), jnp.float32)
        return resize_table(
            self.pos_embed[...],
            self.grid,
            grid,
            num_extra=self.num_table_extra,
            way=self.position_resize,
        )

    def context(
        self, images: Float[Array, "b h w c"], keep_ids: Int[Array, "b k"] | None = None
    ) -> Callable[[Tokens], tuple[Rotation, ...]]:
        """Return what blocks are called with besides tokens and key: the rotation, if any."""
        if self.rotary is None:
            return lambda x: ()
        grid = (images.shape[1] // self.patch_size, images.shape[2] // self.patch_size)
        head_width = self.width // self.num_heads
        angles = rotary_angles(self.rotary, grid, head_width, extent=self.rotary_extent)
        angles = jnp.asarray(angles, jnp.float32)
        angles = angles[None] if keep_ids is None else angles[keep_ids]

        def rotation(num_before: int) -> Rotation:
            padded = jnp.pad(angles, ((0, 0), (num_before, 0), (0, 0)))
            return jnp.cos(padded), jnp.sin(padded)

        plain = rotation(self.num_extra)
        return lambda x: (rotation(x.num_special + x.num_prompts) if x.num_prompts else plain,)

    def _first_tokens(self, table: Array) -> Iterator[Array]:
        """Yield the tokens before the patches, as rows [1, n, d]."""
        if self.cls_token is not None:
            token = self.cls_token[...].astype(table.dtype)
            position = table[0] + token if self.class_token_twice else table[0]
            yield (token + position)[None, None]
        if self.registers is not None:
            yield self.registers[...].astype(table.dtype)[None]

    def run(
        self,
        images: Float[Array, "b h w c"],
        taps: Collection[int] = (),
        *,
        keep_ids: Int[Array, "b k"] | None = None,
        key: OptionalKey = None,
        hooks: Sequence[Hook] = (),
    ) -> Passed:
        """A pass up to the last of the taps, or to the end without taps.

        Args:
            images, keep_ids, key: see `__call__`.
            hooks: that act besides the model's own.
        """
        check_images(images, self.in_channels)
        grid = (images.shape[1] // self.patch_size, images.shape[2] // self.patch_size)
        begun = self.begin(images, *hooks)
        tokens = self.embed(begun.look(images, self.glance), keep_ids)
        end = max(taps) + 1 if taps and self.plan is None else len(self.blocks)
        return run_blocks(
            self.blocks[:end],
            Tokens(tokens, self.num_extra, grid=grid if keep_ids is None else None),
            plan=self.plan,
            hooks=begun,
            taps=taps,
            keys=split_key(key, len(self.blocks)),
            context=self.context(images, keep_ids),
        )

    def leave(self, x: Float[Array, "b n d"], number: int) -> Float[Array, "b n d"]:
        return x if self.norm is None else self.norm(x)

    def __call__(
        self,
        images: Float[Array, "b h w c"],
        *,
        keep_ids: Int[Array, "b k"] | None = None,
        key: OptionalKey = None,
    ) -> Float[Array, "b n d"]:
        """Tokens after the last block and the final norm: class token, registers, patches.

        Args:
            images: normalised, any size that is a multiple of the patch size.
            keep_ids: raster numbers of the patches to see (masked pre-training); None sees all.
            key: given in training only; dropout and drop path then act.
        """
        passed = self.run(images, keep_ids=keep_ids, key=key)
        return self.outgoing(passed.x, self.depth - 1, passed.hooks).array

    def with_attention(
        self, images: Float[Array, "b h w c"]
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b n n"]]:
        """Tokens as a call gives them, and the last block's attention, averaged over its heads."""
        passed = self.run(images, hooks=(Kept(len(self.blocks) - 1),))
        before = passed.hooks.states[-1]
        branch = self.blocks[-1].attn
        attend: Any = branch.inner
        context = self.context(images)(before)
        attention = attend.weights(branch.norm(before.array), *context).mean(axis=1)
        return self.outgoing(passed.x, self.depth - 1, passed.hooks).array, attention


def _normal(shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape, jnp.float32))


@takes(ViT)
def vit(variant: str, **options: Any) -> ViT:
    """A ViT of a named size; options override its fields (see `ViT`).

    >>> vit("micro", image_size=64, rngs=nnx.Rngs(0)).grid
    (8, 8)
    """
    if variant not in VARIANTS:
        raise ConfigError(f"unknown ViT variant {variant!r}; {nearest(variant, VARIANTS)}")
    return ViT(**{**VARIANTS[variant], **options})
