"""Charts for people: a confusion matrix as a picture, lines of text as a panel of a sheet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from vadapt.drawing import INK, PAPER, QUIET, Colour
from vadapt.errors import ShapeError

RIGHT, WRONG = (0, 90, 165), (200, 45, 25)
NO_CLASS = "(no class)"  # the column of predictions that are none
_ABSENT = (236, 237, 240)  # rows of classes that nothing has
_NAMED = 40  # classes whose names are legible beside the cells
_SIDE = 900  # pixels of the cells together where there are more
_LONGEST = 26  # letters of a name
_LISTED = 12  # of the most frequent confusions
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Confused(NamedTuple):
    """A pair of different classes, and the share of the first that is taken for the second."""

    truth: str
    prediction: str
    share: float


def most_confused(
    confusion: Int[np.ndarray, "k p"], classes: Sequence[str], number: int
) -> list[Confused]:
    """The pairs with the largest shares of their true class, the largest first.

    Args:
        confusion: a row a true class, a column a predicted one; a last column of predictions that
            are no class is left out.
    """
    shares = _shares(np.asarray(confusion)[:, : len(classes)], np.asarray(confusion).sum(1))
    shares = np.nan_to_num(shares * ~np.eye(len(shares), dtype=bool))
    order = np.argsort(-shares, axis=None, kind="stable")[:number].tolist()
    pairs = [divmod(place, len(classes)) for place in order]
    named = [(str(classes[t]), str(classes[p]), float(shares[t, p])) for t, p in pairs]
    return [Confused(*each) for each in named if each[2]]


def draw_confusion(
    confusion: Int[np.ndarray, "k p"], classes: Sequence[str]
) -> UInt8[np.ndarray, "h w 3"]:
    """A confusion matrix, every row in percent of its sum: blue what is right, red what is wrong.

    Up to 40 classes have their names beside the rows and the columns, and numbers from 1 percent
    on. Of more, the matrix is drawn alone, on 900 pixels at most (of even more classes, those
    side by side are added up), with the most frequent confusions below. Rows of classes that
    nothing has are gray.

    Args:
        confusion: a row a true class, a column a predicted one, and one more, if there is one, for
            predictions that are none of them; it is drawn where it is not all zero.
        classes: their names, in order.

    Raises:
        ShapeError: it has other rows than there are classes, or no row.
    """
    counts, number = np.asarray(confusion), len(classes)
    if counts.ndim != 2 or len(counts) != number or not number or counts.shape[1] - number > 1:
        raise ShapeError(f"a confusion matrix of shape {counts.shape} and {number} classes")
    columns = [*classes]
    if counts.shape[1] > number and counts[:, number].any():
        columns.append(NO_CLASS)
    counts = counts[:, : len(columns)]
    if number > _NAMED:
        return _draw_many(counts, classes)
    shares = _shares(counts, counts.sum(1))
    cell = 46 if number <= 12 else 32 if number <= 24 else 26
    font = ImageFont.load_default(size=min(16, cell // 2))
    return _framed(_cells(shares, cell, number, numbers=True), [*classes], columns, cell, font)


def text_panel(
    lines: Sequence[tuple[str, Colour]], width: int, height: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Lines of text in their colors on white, from the middle; what does not fit is counted."""
    size = max(11, round(width * 0.075))
    font, step = ImageFont.load_default(size=size), round(1.5 * size)
    room = max(1, (height - size) // step)
    if len(lines) > room:
        lines = [*lines[: room - 1], (f"and {len(lines) - room + 1} more", QUIET)]
    panel = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(panel)
    top = (height - step * (len(lines) - 1)) / 2
    for number, (text, color) in enumerate(lines):
        text = _fitting(text, font, width - size)
        pen.text((size / 2, top + number * step), text, fill=color, font=font, anchor="lm")
    return np.asarray(panel).copy()


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 3] + "..."


def _fitting(text: str, font: _Font, width: float) -> str:
    while len(text) > 4 and font.getlength(text) > width:
        text = text[:-4] + "..."
    return text


def _shares(counts: np.ndarray, totals: np.ndarray) -> Float[np.ndarray, "k p"]:
    """Return shares of the rows' totals; NaN in rows without one."""
    whole = np.broadcast_to(totals[:, None], counts.shape)
    empty = np.full(counts.shape, np.nan)
    return np.divide(counts, whole, out=empty, where=whole > 0)


def _colors(shares: Float[np.ndarray, "k p"]) -> UInt8[np.ndarray, "k p 3"]:
    right = np.eye(*shares.shape, dtype=bool)[..., None]
    # The root shows shares of a few percent, which are what one looks for.
    depth = np.sqrt(np.nan_to_num(shares))[..., None]
    full = np.where(right, RIGHT, WRONG)
    painted = np.asarray(PAPER) + depth * (full - np.asarray(PAPER))
    return np.where(np.isnan(shares)[..., None], _ABSENT, painted).round().astype(np.uint8)


def _cells(shares: np.ndarray, cell: int, number: int, *, numbers: bool) -> Image.Image:
    """Draw the matrix alone; a thin line sets the column of no class apart."""
    colors = _colors(shares)
    picture = Image.fromarray(colors.repeat(cell, 0).repeat(cell, 1))
    pen = ImageDraw.Draw(picture)
    if numbers:
        font = ImageFont.load_default(size=max(10, round(cell * 0.36)))
        for (row, column), share in np.ndenumerate(shares):
            if not share >= 0.005:  # nor NaN
                continue
            middle = ((column + 0.5) * cell, (row + 0.5) * cell)
            ink = PAPER if share > 0.3 else INK
            pen.text(middle, f"{100 * share:.0f}", fill=ink, font=font, anchor="mm")
    if shares.shape[1] > number:
        pen.line((number * cell, 0, number * cell, picture.height), fill=QUIET)
    return picture


def _framed(
    cells: Image.Image, rows: list[str], columns: list[str], cell: int, font: _Font
) -> UInt8[np.ndarray, "h w 3"]:
    """Set the names of rows at the left and those of columns, upright, above."""
    rows, columns = [_cut(x) for x in rows], [_cut(x) for x in columns]
    text = max(11, round(getattr(font, "size", 11)))
    head = ImageFont.load_default(size=text + 2)
    left = 4 * text + round(max(map(font.getlength, rows)))
    top = 5 * text + round(max(map(font.getlength, columns)))
    title = "rows: truth, columns: prediction, in percent of the row"
    width = max(left + cells.width, text + round(head.getlength(title))) + 2 * text
    sheet = Image.new("RGB", (width, top + cells.height + 2 * text), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((text, 1.5 * text), title, fill=QUIET, font=head, anchor="lm")
    for number, name in enumerate(rows):
        place = (left - text * 0.6, top + (number + 0.5) * cell)
        pen.text(place, name, fill=INK, font=font, anchor="rm")
    for number, name in enumerate(columns):
        label = Image.new("RGB", (round(font.getlength(name)) + 2, round(1.6 * text)), PAPER)
        middle = (0, label.height / 2)
        ImageDraw.Draw(label).text(middle, name, fill=INK, font=font, anchor="lm")
        upright = label.transpose(Image.Transpose.ROTATE_90)
        x = round(left + (number + 0.5) * cell - upright.width / 2)
        sheet.paste(upright, (x, top - round(text * 0.6) - upright.height))
    sheet.paste(cells, (left, top))
    pen.rectangle((left - 1, top - 1, left + cells.width, top + cells.height), outline=QUIET)
    return np.asarray(sheet).copy()


def _draw_many(
    counts: Int[np.ndarray, "k p"], classes: Sequence[str]
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw the matrix of many classes without names, and list what is confused most."""
    number = len(classes)
    together = -(-number // _SIDE)
    square, none = counts[:, :number], counts[:, number:]
    if together > 1:
        starts = np.arange(0, number, together)
        square = np.add.reduceat(np.add.reduceat(square, starts, 0), starts, 1)
        none = np.add.reduceat(none, starts, 0)
    grouped = np.concatenate([square, none], 1)
    cell = max(1, _SIDE // len(grouped))
    shares = _shares(grouped, grouped.sum(1))
    cells = _cells(shares, cell, len(grouped), numbers=False)
    size, margin = 15, 24
    font = ImageFont.load_default(size=size)
    title = [f"{number} classes in order; rows: truth, columns: prediction"]
    title += [f"a cell is {together} x {together} classes"] * (together > 1)
    lines = [
        f"{100 * pair.share:.0f} % of {pair.truth!r} is taken for {pair.prediction!r}"
        for pair in most_confused(counts, classes, _LISTED)
    ]
    step, top = round(1.6 * size), margin + round(1.6 * size) * len(title)
    width = max(cells.width, 560) + 2 * margin
    bottom = top + cells.height + margin
    sheet = Image.new("RGB", (width, bottom + step * len(lines) + margin), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, line in enumerate(title):
        pen.text((margin, margin + i * step), line, fill=QUIET, font=font, anchor="lm")
    sheet.paste(cells, (margin, top))
    pen.rectangle((margin - 1, top - 1, margin + cells.width, top + cells.height), outline=QUIET)
    for i, line in enumerate(lines):
        line = _fitting(line, font, width - 2 * margin)
        pen.text((margin, bottom + (i + 0.5) * step), line, fill=INK, font=font, anchor="lm")
    return np.asarray(sheet).copy()
