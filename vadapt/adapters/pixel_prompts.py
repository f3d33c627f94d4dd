"""Prompts in the image: a learned frame of pixels, and learned channels beside its own.

Source: VPT, arXiv:2203.12119, its ablation of where prompts stand.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vadapt.errors import ConfigError, ShapeError
from vadapt.nn.hooks import Glance, Hook
from vadapt.nn.linear import uniform
from vadapt.nn.resize import resize_bilinear
from vadapt.nn.tokens import Tokens
from vadapt.partition import Prompt


def _size(model: Any, patch: int) -> tuple[int, int]:
    """(height, width) in pixels of the images that a model is made for."""
    return model.grid[0] * patch, model.grid[1] * patch


def _check(images: Float[Array, "b h w c"], size: tuple[int, int]) -> None:
    if images.shape[1:3] != size:
        raise ShapeError(
            f"prompts in images of {size[0]}x{size[1]} pixels, and these have "
            f"{images.shape[1]}x{images.shape[2]}; resize them, or create the model at their size"
        )


class Frame(Hook):
    """A learned frame of an image, which is shrunk into it, so that its size stays.

    Args:
        thickness: of the frame, in pixels.

    Raises:
        ConfigError: the frame leaves nothing of the image.
    """

    def __init__(self, model: Any, patch: int, thickness: int, *, rngs: nnx.Rngs):
        self.size, self.thickness = _size(model, patch), thickness
        height, width = self.size
        if not 0 < thickness < min(height, width) / 2:
            raise ConfigError(f"a frame of {thickness} pixels in an image of {height}x{width}")
        channels = model.in_channels
        init = uniform((6 / (3 * patch**2 + channels)) ** 0.5)
        rows = (2 * thickness, width, channels)
        columns = (height - 2 * thickness, 2 * thickness, channels)
        self.rows, self.columns = (Prompt(init(rngs.params(), s)) for s in (rows, columns))

    def acts(self, number: int) -> bool:
        return False

    def look(
        self, images: Float[Array, "b h w c"], glance: Glance | None = None
    ) -> Float[Array, "b h w c"]:
        _check(images, self.size)
        number, side = images.shape[0], self.thickness
        inner = (self.size[0] - 2 * side, self.size[1] - 2 * side)
        rows, columns = (
            jnp.broadcast_to(part[...], (number, *part.shape)).astype(images.dtype)
            for part in (self.rows, self.columns)
        )
        x = resize_bilinear(images, inner)
        x = jnp.concatenate([columns[:, :, :side], x, columns[:, :, side:]], axis=2)
        return jnp.concatenate([rows[:, :side], x, rows[:, side:]], axis=1)


class Below(Hook):
    """Learned channels of an image: what their patches become is added to those of the image.

    As all images have the same channels, and patches enter linearly, it is added behind the frozen
    patch embedding.

    Args:
        channels: how many.

    Raises:
        ConfigError: a norm follows the model's patch embedding.
    """

    def __init__(self, model: Any, patch: int, channels: int, *, rngs: nnx.Rngs):
        if getattr(model, "first_norm", None) is not None:
            raise ConfigError(
                f"vpt: a norm follows the patches of this {type(model).__name__}, so that channels "
                "'below' cannot be added behind it; choose another location"
            )
        self.size, self.patch = _size(model, patch), patch
        fan_in = channels * patch**2
        init = uniform((6 / (3 * patch**2 + channels)) ** 0.5)
        weights = uniform((6 / (fan_in + model.width)) ** 0.5)
        self.channels = Prompt(init(rngs.params(), (*self.size, channels)))
        self.kernel = Prompt(weights(rngs.params(), (patch, patch, channels, model.width)))

    def start(self, images: Float[Array, "b h w c"]) -> None:
        _check(images, self.size)

    def acts(self, number: int) -> bool:
        return number == 0

    def before(self, number: int, x: Tokens, state: None) -> tuple[Tokens, None]:
        added = jax.lax.conv_general_dilated(
            self.channels[...][None],
            self.kernel[...],
            (self.patch, self.patch),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        patches = x.map
        patches = patches + jnp.broadcast_to(added.astype(patches.dtype), patches.shape)
        return x.with_patches(patches), state
