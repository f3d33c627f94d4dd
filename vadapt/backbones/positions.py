"""Position embeddings of plain ViTs: fixed sin-cos tables, and resizing to any grid."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from vadapt.errors import ShapeError


def sincos_table(
    width: int, grid: tuple[int, int], *, class_token: bool = True
) -> Float[np.ndarray, "n d"]:
    """Fixed 2-D sine-cosine positions in raster order; float64 maths, float32 result.

    The first half of the channels encodes the column, the second the row; each half is sines,
    then cosines, at frequencies 10000^(-k/K). A leading zero row stands for the class token.

    Raises:
        ShapeError: `width` is not divisible by 4.

    Source: MAE, arXiv:2111.06377, released code.
    """
    if width % 4:
        raise ShapeError(f"sin-cos positions need a width divisible by 4, got {width}")
    quarter = width // 4
    frequencies = 10000.0 ** (-np.arange(quarter, dtype=np.float64) / quarter)
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")

    def encode(coordinate: np.ndarray) -> np.ndarray:
        angle = coordinate.reshape(-1, 1) * frequencies
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)

    table = np.concatenate([encode(columns), encode(rows)], axis=-1)
    if class_token:
        table = np.concatenate([np.zeros((1, width)), table])
    return table.astype(np.float32)


def resize_table(
    table: Float[Array, "n d"],
    source: tuple[int, int],
    target: tuple[int, int],
    *,
    num_extra: int = 1,
    antialias: bool = False,
) -> Float[Array, "m d"]:
    """Position rows of a `source` grid resampled to a `target` grid; the extra rows are copied.

    Bicubic with a = -0.75, half-pixel centres, borders replicated: what the published ViTs use
    (a common JAX resize has a = -0.5 and antialiasing, and differs by up to 0.4).

    Args:
        num_extra: leading rows that are not grid positions (the class token).
        antialias: widen the kernel when shrinking; off in MAE's and PAD's code.

    Raises:
        ShapeError: the table has not num_extra + h * w rows.
    """
    if table.shape[-2] != num_extra + source[0] * source[1]:
        raise ShapeError(
            f"position table has {table.shape[-2]} rows, a {source[0]}x{source[1]} grid with "
            f"{num_extra} extra needs {num_extra + source[0] * source[1]}"
        )
    if source == target:
        return table
    extra, rows = table[:num_extra], table[num_extra:]
    grid = rearrange(rows, "(h w) d -> h w d", h=source[0])
    grid = jax.image.resize(
        grid.astype(jnp.float32),
        (*target, table.shape[-1]),
        jax.image.ResizeMethod.CUBIC_PYTORCH,
        antialias=antialias,
    )
    rows = rearrange(grid, "h w d -> (h w) d").astype(table.dtype)
    return jnp.concatenate([extra, rows], axis=-2)


def relative_position_index(window: tuple[int, int]) -> Int[np.ndarray, "n n"]:
    """For each pair of tokens its row in a relative position table, class token first.

    Patches i, j of an (h, w) window read row (yi - yj + h - 1) * (2 w - 1) + (xi - xj + w - 1); the
    last three rows of the table are class to patch, patch to class, class to class.

    Source: BEiT, arXiv:2106.08254, released code.
    """
    height, width = window
    rows, columns = np.divmod(np.arange(height * width), width)
    y = rows[:, None] - rows[None] + height - 1
    x = columns[:, None] - columns[None] + width - 1
    last = (2 * height - 1) * (2 * width - 1) + 2
    index = np.empty((height * width + 1,) * 2, np.int32)
    index[1:, 1:] = y * (2 * width - 1) + x
    index[0, :], index[:, 0], index[0, 0] = last - 2, last - 1, last
    return index
