"""Anchors: boxes of a few sizes and shapes around every cell of every level."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Sizes = Sequence[tuple[int, int]]  # (rows, columns) of each level


@dataclasses.dataclass(frozen=True)
class AnchorGrid:
    """Anchors of levels, from the finest on.

    The anchors of a cell come by ratio, then by scale; a level's by rows of cells. The center of
    cell (y, x) is (x * stride, y * stride), without half a stride.

    Attributes:
        strides: of the levels, in pixels.
        scales: lengths of sides, in strides.
        ratios: height over width, at equal area.

    >>> AnchorGrid((8,), scales=(4.0,), ratios=(1.0,)).base(8)
    array([[-16., -16.,  16.,  16.]], dtype=float32)
    """

    strides: tuple[int, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...]

    @classmethod
    def octaves(
        cls, strides: Sequence[int], *, base: float, per_octave: int, ratios: Sequence[float]
    ) -> AnchorGrid:
        """Scales from `base` on, so many evenly spaced ones before twice that."""
        scales = tuple(base * 2 ** (k / per_octave) for k in range(per_octave))
        return cls(tuple(strides), scales, tuple(ratios))

    @property
    def per_cell(self) -> int:
        """Number of anchors of a cell."""
        return len(self.scales) * len(self.ratios)

    def base(self, stride: int) -> Float[np.ndarray, "a 4"]:
        """Anchors of the cell at (0, 0).

        In float32 throughout: by its rounding an object that many anchors contain is matched.
        """
        scales, ratios = (np.asarray(x, np.float32) for x in (self.scales, self.ratios))
        tall = np.sqrt(ratios)
        wide = np.float32(1) / tall
        width = (np.float32(stride) * wide[:, None] * scales[None]).reshape(-1)
        height = (np.float32(stride) * tall[:, None] * scales[None]).reshape(-1)
        half = np.float32(0.5)
        return np.stack([-half * width, -half * height, half * width, half * height], axis=-1)

    def level(self, stride: int, size: tuple[int, int]) -> Float[Array, "n 4"]:
        """Anchors of a level of so many rows and columns."""
        y, x = (jnp.arange(cells, dtype=jnp.float32) * stride for cells in size)
        shifts = jnp.stack([*jnp.meshgrid(x, y), *jnp.meshgrid(x, y)], axis=-1)
        base = jnp.asarray(self.base(stride))
        return (shifts[:, :, None] + base[None, None]).reshape(-1, 4)

    def levels(self, sizes: Sizes) -> list[Float[Array, "_ 4"]]:
        """Anchors of every level."""
        return [self.level(*level) for level in zip(self.strides, sizes, strict=True)]

    def inside(self, sizes: Sizes, padded: Int[Array, "b 2"]) -> list[Bool[Array, "b _"]]:
        """Anchors of cells that an image of `padded` (height, width) reaches, level by level."""
        return [
            self._level_inside(stride, size, padded)
            for stride, size in zip(self.strides, sizes, strict=True)
        ]

    def _level_inside(self, stride: int, size: tuple[int, int], padded: Array) -> Array:
        cells = (padded + (stride - 1)) // stride
        rows, columns = (
            jnp.arange(number)[None] < cells[:, axis, None] for axis, number in enumerate(size)
        )
        found = rows[:, :, None, None] & columns[:, None, :, None]
        return jnp.broadcast_to(found, (*found.shape[:3], self.per_cell)).reshape(len(cells), -1)
