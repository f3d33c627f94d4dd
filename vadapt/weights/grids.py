"""Position tables: which places their rows stand for, which no shape tells for sure.

vadapt's own files say it in their header. Tables of other systems are of square grids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vadapt.errors import WeightsError
from vadapt.nn.positions import resize_table
from vadapt.weights.files import lazily
from vadapt.weights.tables import Table

Grid = tuple[int, int]
HEADER = "grids"  # the field of headers: {path: [rows, columns]}
TABLE = "pos_embed"  # how paths of position tables end


def grids_of(model: nnx.Module) -> dict[str, Grid]:
    """The grids of all position tables of a model, by path."""
    return {
        "/".join(map(str, (*path, TABLE))): getattr(node, "grid")  # noqa: B009
        for path, node in nnx.iter_graph(model)
        if hasattr(node, "grid") and getattr(node, TABLE, None) is not None
    }


def parsed(value: Any, title: str) -> dict[str, Grid]:
    """The grids that a header says.

    Raises:
        WeightsError: it says something else.
    """

    def is_grid(sides: Any) -> bool:
        return (
            isinstance(sides, list)
            and len(sides) == 2
            and all(type(side) is int and 0 < side < 2**16 for side in sides)
        )

    if not isinstance(value, Mapping) or not all(map(is_grid, value.values())):
        raise WeightsError(f"{title} has a header with grids that are none: {str(value)[:80]}")
    return {path: (sides[0], sides[1]) for path, sides in value.items()}


def of_header(header: Mapping[str, Any], title: str) -> dict[str, Grid]:
    """The grids that the parsed header of a file of vadapt's says; none in older ones."""
    return parsed(header.get(HEADER, {}), title)


def refuse_others(said: Mapping[str, Grid], model: nnx.Module, title: str) -> None:
    """Refuse tables that are not resized and are of other grids than a model's.

    Raises:
        WeightsError: names the first.
    """
    for path, own in grids_of(model).items():
        known = grid_for(path, said)
        if known is not None and known != tuple(own):
            raise WeightsError(
                f"{title} holds {path} of {known[0]}x{known[1]} places, the model's table has "
                f"{own[0]}x{own[1]}: build the model for the image size that it was trained at"
            )


def of_shapes(arrays: Mapping[str, Any], table: Table, backbone: str) -> dict[str, Grid]:
    """The grids of tables that files have as maps, by vadapt's path."""
    axes = {"grid": slice(1, 3), "places": slice(2, 4)}
    found = ((table.find(name, backbone), np.shape(array)) for name, array in arrays.items())
    return {
        one[0]: shape[axes[one[1].layout]]
        for one, shape in found
        if one is not None and one[1].layout in axes and len(shape) == 4
    }


def grid_for(path: str, grids: Mapping[str, Grid]) -> Grid | None:
    """The grid of a model's table, whichever of model and file has a `backbone`."""
    for name in (path, path.removeprefix("backbone/"), f"backbone/{path}"):
        if name in grids:
            return grids[name]
    return None


class Fitted(NamedTuple):
    """A table at the grid of its module, and lines for the report; "" for nothing to say."""

    table: Any
    resized: str = ""
    assumed: str = ""


def fit(table: Any, owner: Any, known: Grid | None, *, own: bool, in_file: bool) -> Fitted:
    """A file's table at the grid of the module that it is for, and what was done to it.

    Args:
        table: [n, d]; rows before the places' count, such as the class token's.
        owner: has a `grid`.
        known: the table's grid, if the source says it.
        own: whether it is from a file of vadapt's, which may be of any grid.
        in_file: whether it is from any file; a caller who has arrays knows their grid, so that
            those of the model's own number of places are of its grid.

    Returns:
        The table as it is where its number of rows cannot be explained, to be told by its shape.

    Raises:
        WeightsError: its rows may mean more than one thing.
    """
    rows, extra = table.shape[0], getattr(owner, "num_table_extra", 1)
    wanted = tuple(owner.grid)
    if known is None:
        source, lacking = _told_by_rows(rows, extra, wanted, own=own, in_file=in_file)
    else:
        source, lacking = known if rows == extra + math.prod(known) else None, False
    if source is None:
        return Fitted(table)
    if source == wanted and not lacking:
        sure = known or source[0] == source[1]
        return Fitted(table, assumed="" if sure else f"{rows} rows for {wanted[0]}x{wanted[1]}")
    way = getattr(owner, "position_resize", "cubic")

    def resize(table: Any) -> Any:
        table = jnp.asarray(table)
        if lacking:  # what the class token's position would add is in the token itself
            table = jnp.pad(table, ((1, 0), (0, 0)))
        return resize_table(table, source, wanted, num_extra=extra, way=way)

    done = "a row for the class token, " if lacking else ""
    line = f"{done}{source[0]}x{source[1]} to {wanted[0]}x{wanted[1]}"
    return Fitted(lazily(resize, table), line)


def _told_by_rows(
    rows: int, extra: int, wanted: Grid, *, own: bool, in_file: bool
) -> tuple[Grid | None, bool]:
    """The grid that so many rows stand for, if any, and whether the class token's row lacks."""
    same = wanted if rows == extra + math.prod(wanted) else None
    doubtful = in_file or same is None
    square = _square(rows - extra)
    bare = _square(rows) if extra == 1 and doubtful else None
    with_token = _square(rows - 1) if extra == 0 and doubtful else None
    explanations = [
        f"{grid[0]}x{grid[1]} {words}"
        for grid, words in (
            (square, "places"),
            (same if same != square and (own or square is None) else None, "places"),
            (bare, "places without the class token's row"),
            (with_token, "places and a class token's row"),
        )
        if grid
    ]
    if len(explanations) > 1:
        raise WeightsError(
            f"a position table of {rows} rows may be of {' or of '.join(explanations)}, and "
            "the file does not say which; give load_weights its grid, as in "
            f"grids={{{TABLE!r}: ({wanted[0]}, {wanted[1]})}}"
        )
    return square or same or bare, square is None and same is None


def _square(places: int) -> Grid | None:
    side = math.isqrt(max(places, 0))
    return (side, side) if side and side * side == places else None
