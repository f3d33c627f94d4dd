"""The token sequence between the blocks of a trunk."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vadapt.errors import ShapeError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
    """Special tokens, prompts and patches, in this order; or a map.

    Blocks are called with `array`. Everyone else takes a field by its name, so that a method may
    add prompts without anyone having to count them.

    Attributes:
        array: [b, s + p + n, d]; or [b, h, w, d] where blocks work on maps, and s = p = 0.
        num_special: s, the class token and registers.
        num_prompts: p, what methods added.
        grid: (rows, columns) of the patches; None where some of them are left out.
    """

    array: Any
    num_special: int = dataclasses.field(default=0, metadata={"static": True})
    num_prompts: int = dataclasses.field(default=0, metadata={"static": True})
    grid: tuple[int, int] | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def special(self) -> Float[Array, "b s d"]:
        """The class token and registers."""
        return self.tokens[:, : self.num_special]

    @property
    def prompts(self) -> Float[Array, "b p d"]:
        """The tokens that methods added to the sequence."""
        return self.tokens[:, self.num_special : self.num_special + self.num_prompts]

    @property
    def patches(self) -> Float[Array, "b n d"]:
        """Patches in raster order."""
        return self.tokens[:, self.num_special + self.num_prompts :]

    @property
    def map(self) -> Float[Array, "b h w d"]:
        """Patches as a map.

        Raises:
            ShapeError: some patches are left out.
        """
        if self.array.ndim == 4:
            return self.array
        patches = self.patches
        if self.grid is None or self.grid[0] * self.grid[1] != patches.shape[1]:
            raise ShapeError(
                f"{patches.shape[1]} patches are no map of {self.grid or 'a known size'}; feed "
                "all patches"
            )
        return rearrange(patches, "b (h w) d -> b h w d", h=self.grid[0])

    def with_array(self, array: Float[Array, "b *n d"]) -> Tokens:
        """The same fields with other numbers."""
        return dataclasses.replace(self, array=array)

    def with_patches(self, patches: Float[Array, "b *n d"]) -> Tokens:
        """The sequence with these patches, as tokens or as a map."""
        if self.array.ndim == 4:
            return self.with_array(patches.reshape(self.array.shape))
        if patches.ndim == 4:
            patches = rearrange(patches, "b h w d -> b (h w) d")
        before = self.num_special + self.num_prompts
        if not before:
            return self.with_array(patches)
        return self.with_array(jnp.concatenate([self.array[:, :before], patches], axis=1))

    def with_prompts(self, prompts: Float[Array, "b p d"]) -> Tokens:
        """The sequence with these prompts in place of those that it has.

        Raises:
            ShapeError: the blocks work on maps, which have no place for prompts.
        """
        if self.array.ndim == 4:
            raise ShapeError(
                "prompts need a sequence of tokens, and these blocks work on maps; choose a plain "
                "ViT, or a method without prompts"
            )
        array = jnp.concatenate([self.special, prompts, self.patches], axis=1)
        return dataclasses.replace(self, array=array, num_prompts=prompts.shape[1])

    def without_prompts(self) -> Tokens:
        """The sequence as others know it."""
        if not self.num_prompts:
            return self
        array = jnp.concatenate([self.special, self.patches], axis=1)
        return dataclasses.replace(self, array=array, num_prompts=0)

    @property
    def tokens(self) -> Float[Array, "b n d"]:
        """All of them as a sequence."""
        if self.array.ndim == 4:
            return rearrange(self.array, "b h w d -> b (h w) d")
        return self.array
