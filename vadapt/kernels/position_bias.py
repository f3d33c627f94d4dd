"""Relative position bias of vision graphs: it makes nodes that are near on the grid nearer.

The bias of two nodes is minus the likeness of their sine-cosine codes, which is t[rows apart] +
t[columns apart]. So no matrix is stored: a table with a number for each row of the grid holds it.

Source: Vision GNN, arXiv:2206.00272, released code.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vadapt.errors import ShapeError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PositionBias:
    """The bias between the nodes of a grid, in raster order, and its cells of r x r nodes.

    >>> bias = position_bias(channels=8, trained=4, size=(4, 4), reduction=2)
    >>> bias.rows.shape, bias.shape, bias.dense().shape
    ((4,), (16, 4), (16, 4))
    """

    rows: Any  # Float[Array, "h"], of offsets 0, 1, ... in rows; no array while JAX works on trees
    columns: Any  # Float[Array, "w"]
    reduction: int = dataclasses.field(default=1, metadata={"static": True})  # r
    geometric: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of nodes and of cells."""
        (h,), (w,), r = self.rows.shape, self.columns.shape, self.reduction
        return h * w, (h // r) * (w // r)

    def factors(self) -> tuple[Float[Array, "h m"], Float[Array, "w m"]]:
        """A node's bias is the sum of what its row has in the first and its column in the second.

        Cells were averages of nodes: of those in them, or of the four that a bicubic resize reads.
        """
        (h,), (w,) = self.rows.shape, self.columns.shape
        n, m = self.shape
        if self.geometric:
            nodes = _nodes_of_cells((h, w), self.reduction)
            shares = np.full(nodes.shape, 1 / nodes.shape[1], np.float32)
        else:
            nodes, shares = taps(n, m)
        row, column = jnp.zeros((h, m)), jnp.zeros((w, m))
        for node, share in zip(nodes.T, shares.T, strict=True):
            share = jnp.asarray(share)[None]
            row += share * self.rows[np.abs(np.arange(h)[:, None] - node // w)]
            column += share * self.columns[np.abs(np.arange(w)[:, None] - node % w)]
        return row, column

    def dense(self) -> Float[Array, "n m"]:
        """The matrix."""
        row, column = self.factors()
        return (row[:, None] + column[None]).reshape(self.shape)


def position_bias(
    channels: int,
    trained: int,
    size: tuple[int, int],
    *,
    reduction: int = 1,
    geometric: bool = False,
) -> PositionBias | Float[Array, "n m"]:
    """The bias for a grid of `size`, of a model trained on `trained` x `trained` nodes.

    The released models pool their sources over cells but shrink the bias along the flattened
    sources, so that it draws nodes to other places than where the cells are. Their weights need it.
    Also, they resize the matrix, as if it were an image, where the number of nodes is another;
    then, and then alone, this gives a matrix.

    Args:
        channels: of the sine-cosine code, as many as the nodes have.
        reduction: side r of the cells; odd rows and columns at the end are in none.
        geometric: averages over the nodes of every cell instead, at any size; what is as far apart
            in shares of the grid has the same bias.

    Raises:
        ShapeError: channels are not divisible by 4, or a cell is larger than the grid.
    """
    h, w = size
    if channels % 4 or min(trained, h, w) < reduction:
        raise ShapeError(
            f"no position bias for {channels} channels and cells of {reduction}x{reduction} nodes "
            f"on grids of {trained}x{trained} and {h}x{w}; channels must be divisible by 4"
        )
    if geometric:
        rows, columns = (table(channels, trained, side) for side in size)
        return PositionBias(rows, columns, reduction, geometric=True)
    line = table(channels, trained)
    bias = PositionBias(line, line, reduction)
    return bias if h * w == trained**2 else _resized(bias, size)


def table(channels: int, trained: int, side: int | None = None) -> Float[Array, "g"]:
    """t[D] of offsets D = 0, 1, ... on a grid of `trained` nodes a side; computed in float64.

    Args:
        side: as many offsets, between nodes that divide the same side more or less finely.
    """
    side = trained if side is None else side
    quarter = channels // 4
    frequencies = 10000.0 ** (-np.arange(quarter, dtype=np.float64) / quarter)
    angles = np.arange(side)[:, None] * (trained / side) * frequencies
    return jnp.asarray(-2 / channels * np.cos(angles).sum(axis=1), jnp.float32)


def taps(source: int, target: int) -> tuple[Int[np.ndarray, "m 4"], Float[np.ndarray, "m 4"]]:
    """Where a bicubic resize reads, and in what shares.

    As PyTorch's: a = -0.75, half-pixel centres, borders repeated, no antialiasing.
    """
    centres = (np.arange(target) + 0.5) * (source / target) - 0.5
    first = np.floor(centres).astype(int) - 1
    away = np.abs(centres[:, None] - first[:, None] - np.arange(4))
    near = (1.25 * away - 2.25) * away**2 + 1
    far = -0.75 * (((away - 5) * away + 8) * away - 4)
    shares = np.where(away <= 1, near, far).astype(np.float32)
    return np.clip(first[:, None] + np.arange(4), 0, source - 1), shares


def _nodes_of_cells(size: tuple[int, int], reduction: int) -> Int[np.ndarray, "m rr"]:
    (h, w), r = size, reduction
    nodes = np.arange(h * w).reshape(h, w)[: h // r * r, : w // r * r]
    return nodes.reshape(h // r, r, w // r, r).swapaxes(1, 2).reshape(-1, r * r)


def _resized(bias: PositionBias, size: tuple[int, int]) -> Float[Array, "n m"]:
    """The matrix read at another number of nodes and cells, through its factors."""
    (h, w), r = size, bias.reduction
    n, m = bias.shape
    cells, shares = taps(m, (h // r) * (w // r))
    row, column = (
        jnp.einsum("hmq,mq->hm", factor[:, cells], shares, precision="highest")
        for factor in bias.factors()
    )
    nodes, shares = taps(n, h * w)
    side = bias.columns.shape[0]
    parts = (
        jnp.asarray(share)[:, None] * (row[node // side] + column[node % side])
        for node, share in zip(nodes.T, shares.T, strict=True)
    )
    return functools.reduce(jnp.add, parts)
