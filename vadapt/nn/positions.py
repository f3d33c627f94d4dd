"""Position embeddings of plain ViTs: fixed sin-cos tables, and resizing to any grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int

from vadapt.errors import ConfigError, ShapeError, nearest


class Resize(NamedTuple):
    """A family's way to sample a grid of positions at another size; half-pixel centres."""

    method: jax.image.ResizeMethod = jax.image.ResizeMethod.CUBIC_PYTORCH
    antialias: bool = False  # widens the kernel when shrinking
    offset: float = 0.0  # cells added to the wanted sides when the sampling step is computed


# PyTorch's bicubic has a = -0.75 and replicates borders; antialiased, a = -0.5 and no borders. A
# common JAX resize does the latter always, which differs from the former by up to 0.4.
RESIZES: dict[str, Resize] = {
    "cubic": Resize(),  # MAE, PAD, and Hugging Face's DINOv2
    "cubic_offset": Resize(offset=0.1),  # DINOv2: the step is source / (wanted + 0.1)
    "cubic_antialias": Resize(antialias=True),  # DINOv2 with registers
    "linear": Resize(jax.image.ResizeMethod.LINEAR),  # CLIP's towers in dense use
}


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
    way: str = "cubic",
) -> Float[Array, "m d"]:
    """Position rows of a `source` grid resampled to a `target` grid; the extra rows are copied.

    Args:
        num_extra: leading rows that are not grid positions (the class token).
        way: key of `RESIZES`. The same grid is never resampled, whatever the way.

    Raises:
        ConfigError: no such way.
        ShapeError: the table has not num_extra + h * w rows.
    """
    if way not in RESIZES:
        raise ConfigError(f"unknown position resize {way!r}; {nearest(way, RESIZES)}")
    if table.shape[-2] != num_extra + source[0] * source[1]:
        raise ShapeError(
            f"position table has {table.shape[-2]} rows, a {source[0]}x{source[1]} grid with "
            f"{num_extra} extra needs {num_extra + source[0] * source[1]}"
        )
    if source == target:
        return table
    extra, rows = table[:num_extra], table[num_extra:]
    grid = rearrange(rows, "(h w) d -> h w d", h=source[0])
    grid = resample(grid.astype(jnp.float32), target, RESIZES[way])
    rows = rearrange(grid, "h w d -> (h w) d").astype(table.dtype)
    return jnp.concatenate([extra, rows], axis=-2)


def resample(
    grid: Float[Array, "h w *d"], target: tuple[int, int], way: Resize = RESIZES["cubic"]
) -> Float[Array, "gh gw *d"]:
    """A grid of numbers at another size: positions, or the cells of a patch kernel."""
    shape = (*target, *grid.shape[2:])
    if not way.offset:
        return jax.image.resize(grid, shape, way.method, antialias=way.antialias)
    sides = zip(target, grid.shape[:2], strict=True)
    step = jnp.array([(wanted + way.offset) / given for wanted, given in sides], jnp.float32)
    return jax.image.scale_and_translate(
        grid, shape, (0, 1), step, jnp.zeros(2), way.method, antialias=way.antialias
    )


def resize_relative(table: Float[Array, "r d"], rows: int) -> Float[Array, "m d"]:
    """Relative positions along one axis, resampled linearly; the offset 0 stays in the middle.

    Source: ViTDet, arXiv:2203.16527, and SAM, arXiv:2304.02643, released code.
    """
    if table.shape[0] == rows:
        return table
    grid = resample(table[:, None].astype(jnp.float32), (rows, 1), RESIZES["linear"])
    return grid[:, 0].astype(table.dtype)


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


# Cosines and sines of the angles by which queries and keys are turned, [1 or b, n, e] each, with
# a head's width e; tokens without a place have 1 and 0.
Rotation = tuple[Float[Array, "r n e"], Float[Array, "r n e"]]


def _pairs(x: Array) -> Array:
    """(x0, x1, x2, x3) to (-x1, x0, -x3, x2)."""
    x = rearrange(x, "... (d two) -> ... d two", two=2)
    return rearrange(jnp.stack([-x[..., 1], x[..., 0]], axis=-1), "... d two -> ... (d two)")


def _halves(x: Array) -> Array:
    """(x0, x1, x2, x3) to (-x2, -x3, x0, x1)."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([-second, first], axis=-1)


# Which channels turn with each other.
TURNS: dict[str, Callable[[Array], Array]] = {"pairs": _pairs, "halves": _halves}


def rotate(x: Float[Array, "b n h e"], rotation: Rotation, way: str) -> Float[Array, "b n h e"]:
    """Queries or keys turned by their tokens' places, in float32.

    Args:
        way: a key of `TURNS`.
    """
    cos, sin = (table[:, :, None] for table in rotation)
    y = x.astype(jnp.float32)
    return (y * cos + TURNS[way](y) * sin).astype(x.dtype)


def rotary_angles(
    way: str, grid: tuple[int, int], width: int, *, extent: float | None = 16.0
) -> Float[np.ndarray, "n d"]:
    """Angles of rotary positions on a grid, raster order; rows in the first half of the pairs.

    Args:
        way: "pairs" is EVA-02's: channels 2i and 2i + 1 turn together, at frequencies
            10000^(-j / (d/4)) of the place. "halves" is DINOv3's: channels i and i + d/2 turn
            together, at 2 pi 100^(-j / (d/4)) of the place in -1 to 1 (patch centres).
        width: of a head; d.
        extent: the sides of the grid in EVA-02's places, whatever their number of patches (the
            pretrained 16), or None for steps of one. DINOv3 has no use for it.

    Raises:
        ConfigError: no such way.
        ShapeError: `width` is not divisible by 4.

    Source: RoFormer, arXiv:2104.09864; EVA-02, arXiv:2303.11331; DINOv3, arXiv:2508.10104.
    """
    if way not in TURNS:
        raise ConfigError(f"unknown rotary positions {way!r}; {nearest(way, TURNS)}")
    if width % 4:
        raise ShapeError(f"rotary positions need a head's width divisible by 4, got {width}")
    exponents = -np.arange(width // 4) / (width // 4)
    if way == "pairs":
        frequencies = 10000.0**exponents
        places = [np.arange(n) * (extent / n if extent else 1.0) for n in grid]
    else:
        frequencies = 2 * np.pi * 100.0**exponents
        places = [(2 * np.arange(n) + 1) / n - 1 for n in grid]
    rows, columns = np.meshgrid(*places, indexing="ij")
    angles = np.stack([rows.reshape(-1), columns.reshape(-1)], 1)[..., None] * frequencies
    angles = angles.reshape(len(angles), -1)
    return np.repeat(angles, 2, axis=1) if way == "pairs" else np.tile(angles, 2)


def sine_positions(
    width: int,
    grid: tuple[int, int],
    *,
    temperature: float = 10000.0,
    extent: float | None = 2 * np.pi,
    epsilon: float = 1e-6,
) -> Float[np.ndarray, "h w d"]:
    """Fixed positions of a map for mask decoders: sines and cosines of the share of its sides.

    The first half of the channels encodes the row, the second the column; sines on even channels,
    cosines on odd ones.

    Args:
        extent: where the last row and column are, whatever the size; None counts rows and columns
            from 1 instead.
        epsilon: added to the number of rows or columns that shares are of.

    Raises:
        ShapeError: `width` is not divisible by 4.

    Source: DETR, arXiv:2005.12872.
    """
    if width % 4:
        raise ShapeError(f"sine positions need a width divisible by 4, got {width}")
    pairs = np.arange(width // 4) / (width // 4)

    def encode(size: int) -> np.ndarray:
        places = np.arange(1, size + 1)
        if extent is not None:
            places = places / (size + epsilon) * extent
        angles = places[:, None] / temperature**pairs
        return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(size, -1)

    rows, columns = (encode(size) for size in grid)
    shape = (*grid, width // 2)
    halves = [np.broadcast_to(rows[:, None], shape), np.broadcast_to(columns[None], shape)]
    return np.concatenate(halves, axis=-1).astype(np.float32)
