"""Rows of a pyramid's maps as the tokens of windows, and back, in the memory of a TPU.

A window has, of every level, a cell of the coarsest map: r x r places, the row above these and the
column on their left. The maps' rows are walked with strides, which memory allows where it is as
wide as a register: channels lie in planes of 128. Nothing here is computed but sums.

Rows of cells come one after another. What a window takes from the cells above it is what the row
before has left in its tokens; what it gives them is added before they are written, one row late.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

LANES = 128


class Level(NamedTuple):
    """A level's cells, and where their tokens are in a window."""

    r: int  # rows and columns of a cell
    width: int
    first: int  # token
    halo: int  # rows above and columns on the left, 1 or 0

    def token(self, row: Any, column: Any) -> Any:
        """The number of a place's token; row and column -1 are those of other cells."""
        side = self.r + self.halo
        return self.first + (row + self.halo) * side + column + self.halo


class Cells(NamedTuple):
    """All levels' cells."""

    rows: int
    columns: int
    levels: tuple[Level, ...]
    tokens: int  # of a window
    padded: int  # rounded up; windows lie one after another

    def place(self, token: Any, *, first: int = 0, end: int = 0) -> Any:
        """Where a token of all windows is, but of so many on the left and on the right."""
        number = self.columns - first - end
        return pl.ds(first * self.padded + token, number, stride=self.padded)

    def each(self, window: Any) -> None:
        """Calls `window` with the place of every window's tokens."""

        def body(i: Any, carry: None) -> None:
            window(pl.ds(pl.multiple_of(i * self.padded, 8), self.padded))

        jax.lax.fori_loop(0, self.columns, body, None)


def cells_of(maps: Sequence[Any]) -> Cells:
    """The cells of maps [b, h, w, c], the finest first, each twice as large as the next."""
    levels, tokens = [], 0
    for i, x in enumerate(maps):
        r = 1 << (len(maps) - 1 - i)
        halo = int(r > 1)
        levels.append(Level(r, x.shape[2], tokens, halo))
        tokens += (r + halo) ** 2
    rows, columns = maps[-1].shape[1:3]
    return Cells(rows, columns, tuple(levels), tokens, -(-tokens // 8) * 8)


def planes(channels: int) -> int:
    """How many planes hold so many channels."""
    return -(-channels // LANES)


def read(tokens: Any, here: Any, channels: int) -> Array:
    """A window's tokens, [tokens, channels]."""
    return jnp.concatenate([tokens[i, here] for i in range(tokens.shape[0])], axis=1)[:, :channels]


def write(tokens: Any, here: Any, x: Array) -> None:
    """Sets a window's tokens."""
    for plane in range(tokens.shape[0]):
        lanes = _lanes(plane, x.shape[1])
        tokens[plane, here, : lanes.stop - lanes.start] = x[:, lanes]


def unfold(cells: Cells, step: Any, maps: Sequence[Any], row: Any, tokens: Any) -> None:
    """Lays a row of cells out as tokens.

    Args:
        step: the number of the row; all before it have come.
        maps: refs of the rows of all levels, [1, r, width, channels].
        row: a ref to work in, [the finest width, 128] float32.
        tokens: a ref [planes, windows tokens, 128] float32.
    """

    @pl.when(step == 0)
    def _start() -> None:  # tokens that are none, too, and what is beside the first column
        tokens[...] = jnp.zeros(tokens.shape, tokens.dtype)

    for level, ref in zip(cells.levels, maps, strict=True):
        for plane in range(tokens.shape[0]):
            lanes = _lanes(plane, ref.shape[3])
            _unfold_level(cells, level, ref.at[0, :, :, lanes], row, tokens.at[plane])


def _unfold_level(cells: Cells, level: Level, ref: Any, row: Any, tokens: Any) -> None:
    r = level.r
    if level.halo:
        for column in range(r):
            found = tokens[cells.place(level.token(r - 1, column))]
            tokens[cells.place(level.token(-1, column))] = found
        _beside(cells, tokens, level.token(-1, -1), found)

    def lay(y: Any, carry: None) -> None:
        row[: level.width, : ref.shape[2]] = ref[y].astype(jnp.float32)
        for column in range(r):
            found = row[pl.ds(column, cells.columns, stride=r)]
            tokens[cells.place(level.token(y, column))] = found
        if level.halo:
            _beside(cells, tokens, level.token(y, -1), found)

    jax.lax.fori_loop(0, r, lay, None)


def _beside(cells: Cells, tokens: Any, token: Any, x: Array) -> None:
    """Sets a token of every window to what x is for the one on its left."""
    if cells.columns > 1:
        tokens[cells.place(token, first=1)] = x[:-1]


def fold(cells: Cells, step: Any, new: Any, last: Any, row: Any, maps: Sequence[Any]) -> None:
    """Writes the row of cells before this one; each place is the sum of its tokens.

    Args:
        step: the number of the row; one after the last has no tokens of its own.
        new: a ref of tokens, which are this row's.
        last: another, for those of the row before, and these afterwards.
        row, maps: as of `unfold`; these are written, but not at the first row.
    """

    @pl.when(step == cells.rows)
    def _nothing() -> None:
        new[...] = jnp.zeros(new.shape, new.dtype)

    @pl.when(step > 0)
    def _rows() -> None:
        for level, ref in zip(cells.levels, maps, strict=True):
            for plane in range(new.shape[0]):
                lanes = _lanes(plane, ref.shape[3])
                rows = ref.at[0, :, :, lanes]
                _fold_level(cells, level, new.at[plane], last.at[plane], row, rows)

    last[...] = new[...]


def _fold_level(cells: Cells, level: Level, new: Any, last: Any, row: Any, ref: Any) -> None:
    r = level.r
    if level.halo:
        for column in range(r):
            given = new[cells.place(level.token(-1, column))]
            last[cells.place(level.token(r - 1, column))] += given
        _add(cells, last, level.token(r - 1, r - 1), new, level.token(-1, -1))

    def gather(y: Any, carry: None) -> None:
        if level.halo:
            _add(cells, last, level.token(y, r - 1), last, level.token(y, -1))
        for column in range(r):
            found = last[cells.place(level.token(y, column))]
            row[pl.ds(column, cells.columns, stride=r)] = found
        ref[y] = row[: level.width, : ref.shape[2]].astype(ref.dtype)

    jax.lax.fori_loop(0, r, gather, None)


def _add(cells: Cells, tokens: Any, token: Any, given: Any, other: Any) -> None:
    """Adds to a token of every window the other of the one on its right."""
    if cells.columns > 1:
        tokens[cells.place(token, end=1)] += given[cells.place(other, first=1)]


def _lanes(plane: int, channels: int) -> slice:
    """The channels in a plane."""
    return slice(plane * LANES, min((plane + 1) * LANES, channels))
