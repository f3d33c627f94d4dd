"""Plots for people: a matrix of numbers as colored cells, curves over a number, each with a legend.

They are for reports; a confusion matrix, of which rows are shares, has its own picture in `charts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from vadapt.drawing import INK, PAPER, QUIET, Colour

COLORS: tuple[Colour, ...] = (
    *((0, 90, 165), (200, 45, 25), (30, 140, 90), (220, 140, 0)),
    *((120, 80, 180), (0, 150, 170), (110, 114, 122), (190, 60, 130)),
)
_GRID = (226, 228, 232)
_DEEP = (0, 70, 140)
_TEXT, _CELL = 14, 46
_WIDTH, _HEIGHT = 640, 360  # of what curves lie in


class Curve(NamedTuple):
    """Points of a curve, and deviations of them, drawn as bars; none where they are zero."""

    x: Sequence[float]
    y: Sequence[float]
    deviation: Sequence[float]


def draw_matrix(
    matrix: Float[np.ndarray, "r c"],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    marks: Sequence[int] = (),
) -> UInt8[np.ndarray, "h w 3"]:
    """Numbers as cells, the larger the deeper, from the least to the largest of all.

    Args:
        marks: lines are drawn before these rows and columns.
    """
    low, high = float(matrix.min()), float(matrix.max())
    depth = (matrix - low) / max(high - low, 1e-9)
    colors = np.asarray(PAPER) + depth[..., None] * (np.asarray(_DEEP) - np.asarray(PAPER))
    cell = max(12, min(_CELL, 1200 // len(rows)))
    cells = Image.fromarray(colors.round().astype(np.uint8).repeat(cell, 0).repeat(cell, 1))
    pen = ImageDraw.Draw(cells)
    small = ImageFont.load_default(size=max(9, cell // 3 - 1))
    for (row, column), value in np.ndenumerate(matrix if cell >= 30 else np.zeros((0, 0))):
        middle = ((column + 0.5) * cell, (row + 0.5) * cell)
        ink = PAPER if depth[row, column] > 0.5 else INK
        pen.text(middle, f"{value:.2f}", fill=ink, font=small, anchor="mm")
    for mark in marks:
        pen.line((mark * cell, 0, mark * cell, cells.height), fill=COLORS[1], width=2)
        pen.line((0, mark * cell, cells.width, mark * cell), fill=COLORS[1], width=2)
    font = ImageFont.load_default(size=_TEXT)
    left = 2 * _TEXT + round(max(map(font.getlength, rows)))
    top = 5 * _TEXT
    width = max(left + cells.width, round(font.getlength(title)) + _TEXT) + 2 * _TEXT
    sheet = Image.new("RGB", (width, top + cells.height + 2 * _TEXT), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_TEXT, 1.5 * _TEXT), title, fill=INK, font=font, anchor="lm")
    every = max(1, -(-2 * _TEXT // cell))
    for number in range(0, len(rows), every):
        place = (left - 0.6 * _TEXT, top + (number + 0.5) * cell)
        pen.text(place, rows[number], fill=INK, font=font, anchor="rm")
    for number in range(0, len(columns), every):
        place = (left + (number + 0.5) * cell, top - 0.6 * _TEXT)
        pen.text(place, columns[number], fill=INK, font=font, anchor="ms")
    sheet.paste(cells, (left, top))
    pen.rectangle((left - 1, top - 1, left + cells.width, top + cells.height), outline=QUIET)
    return np.asarray(sheet).copy()


def draw_curves(
    curves: Mapping[str, Curve], title: str, x_name: str, y_name: str
) -> UInt8[np.ndarray, "h w 3"]:
    """Curves over whole numbers, of finite points alone, with a legend at the right."""
    font = ImageFont.load_default(size=_TEXT)
    xs = sorted({x for curve in curves.values() for x in curve.x})
    values = np.concatenate([np.asarray([c.y, c.deviation], float) for c in curves.values()], 1)
    ticks = _ticks(float((values[0] - values[1]).min()), float(values.sum(0).max()))
    left, top = 5 * _TEXT, 4 * _TEXT
    legend = round(max(map(font.getlength, curves))) + 5 * _TEXT
    sheet = Image.new("RGB", (left + _WIDTH + legend, top + _HEIGHT + 4 * _TEXT), PAPER)
    pen = ImageDraw.Draw(sheet)
    span = max(xs[-1] - xs[0], 1)

    def place(x: float, y: float) -> tuple[float, float]:
        share = (y - ticks[0]) / (ticks[-1] - ticks[0])
        return left + 20 + (x - xs[0]) / span * (_WIDTH - 40), top + (1 - share) * _HEIGHT

    pen.text((_TEXT, 1.2 * _TEXT), title, fill=INK, font=font, anchor="lm")
    pen.text((_TEXT, 2.8 * _TEXT), y_name, fill=QUIET, font=font, anchor="lm")
    for tick in ticks:
        y = place(xs[0], tick)[1]
        pen.line((left, y, left + _WIDTH, y), fill=_GRID)
        pen.text((left - 0.6 * _TEXT, y), f"{tick:g}", fill=QUIET, font=font, anchor="rm")
    for x in xs:
        middle = (place(x, ticks[0])[0], top + _HEIGHT + 0.9 * _TEXT)
        pen.text(middle, f"{x:g}", fill=QUIET, font=font, anchor="mm")
    middle = (left + _WIDTH / 2, top + _HEIGHT + 2.6 * _TEXT)
    pen.text(middle, x_name, fill=QUIET, font=font, anchor="mm")
    for number, (name, curve) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        points = [place(x, y) for x, y in zip(curve.x, curve.y, strict=True)]
        if len(points) > 1:
            pen.line(points, fill=color, width=2, joint="curve")
        for x, y, deviation in zip(curve.x, curve.y, curve.deviation, strict=True):
            if deviation > 0:
                pen.line((*place(x, y - deviation), *place(x, y + deviation)), fill=color)
        for x, y in points:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
        y = top + (number + 0.5) * 1.8 * _TEXT
        start = left + _WIDTH + _TEXT
        pen.line((start, y, start + 2 * _TEXT, y), fill=color, width=3)
        pen.text((start + 2.5 * _TEXT, y), name, fill=INK, font=font, anchor="lm")
    return np.asarray(sheet).copy()


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from below the least to above the largest."""
    span = max(high - low, 1e-3)
    power = 10.0 ** np.floor(np.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 5 >= span)
    first, last = np.floor(low / step), np.ceil(high / step)
    return [round(float(step * i), 9) for i in np.arange(first, max(last, first + 1) + 1)]
