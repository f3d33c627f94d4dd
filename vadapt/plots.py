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


class Point(NamedTuple):
    """A point, and the deviation of its height, drawn as a bar where it is not zero."""

    x: float
    y: float
    deviation: float = 0.0


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
    curves: Mapping[str, Curve], title: str, x_name: str, y_name: str, *, log: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
    """Curves over whole numbers, of finite points alone, with a legend at the right.

    Args:
        log: whether equal ratios of x, not equal differences, lie equally far apart.
    """
    xs = sorted({x for curve in curves.values() for x in curve.x})
    values = np.concatenate([np.asarray([c.y, c.deviation], float) for c in curves.values()], 1)
    plot = _Plot((title, x_name, y_name), xs, _ends(*values), [*curves], log=log)
    for number, (name, curve) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        points = [plot.place(x, y) for x, y in zip(curve.x, curve.y, strict=True)]
        if len(points) > 1:
            plot.pen.line(points, fill=color, width=2, joint="curve")
        for each in zip(curve.x, curve.y, curve.deviation, strict=True):
            plot.bar(*each, color)
        for x, y in points:
            plot.pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color)
        x, y = plot.legend(number)
        plot.pen.line((x, y, x + 2 * _TEXT, y), fill=color, width=3)
        plot.pen.text((x + 2.5 * _TEXT, y), name, fill=INK, font=plot.font, anchor="lm")
    return np.asarray(plot.sheet).copy()


def draw_points(
    points: Mapping[str, Point], title: str, x_name: str, y_name: str
) -> UInt8[np.ndarray, "h w 3"]:
    """Numbered points over powers of ten, of x above zero, with their names at the right."""
    xs, ys, deviations = np.asarray([*points.values()], float).T
    powers = np.arange(np.floor(np.log10(xs.min())), np.ceil(np.log10(xs.max())) + 1)
    titles = (title, x_name, y_name)
    plot = _Plot(titles, (10.0**powers).tolist(), _ends(ys, deviations), [*points], log=True)
    small = ImageFont.load_default(size=_TEXT - 4)
    for i, (name, point) in enumerate(points.items()):
        color = COLORS[i % len(COLORS)]
        x, y = plot.place(point.x, point.y)
        plot.bar(*point, color)
        plot.pen.ellipse((x - 8, y - 8, x + 8, y + 8), fill=color)
        plot.pen.text((x, y), str(i + 1), fill=PAPER, font=small, anchor="mm")
        line = f"{i + 1}  {name}"
        plot.pen.text(plot.legend(i), line, fill=color, font=plot.font, anchor="lm")
    return np.asarray(plot.sheet).copy()


class _Plot:
    """A sheet with axes, a grid and room for a legend.

    Args:
        titles: of the sheet, of x and of y.
        xs: that are marked, from the least to the largest.
        ends: the least y and the largest.
        names: in the legend.
    """

    def __init__(
        self,
        titles: tuple[str, str, str],
        xs: Sequence[float],
        ends: tuple[float, float],
        names: Sequence[str],
        *,
        log: bool,
    ):
        self.font = ImageFont.load_default(size=_TEXT)
        self._left, self._top = 5 * _TEXT, 4 * _TEXT
        self._line = (1.8 if len(names) <= len(COLORS) else 1.3) * _TEXT
        self._height = max(_HEIGHT, round(self._line * len(names)))
        self._scale = np.log if log else float
        self._across = [self._scale(x) for x in (xs[0], xs[-1])]
        self._ticks = _ticks(*ends)
        legend = round(max(map(self.font.getlength, names))) + 5 * _TEXT
        size = (self._left + _WIDTH + legend, self._top + self._height + 4 * _TEXT)
        self.sheet = Image.new("RGB", size, PAPER)
        self.pen = ImageDraw.Draw(self.sheet)
        self._label((_TEXT, 1.2 * _TEXT), titles[0], "lm", INK)
        self._label((_TEXT, 2.8 * _TEXT), titles[2], "lm")
        right, bottom = self._left + _WIDTH, self._top + self._height
        for tick in self._ticks:
            y = self.place(xs[0], tick)[1]
            self.pen.line((self._left, y, right, y), fill=_GRID)
            self._label((self._left - 0.6 * _TEXT, y), f"{tick:g}", "rm")
        for x in xs:
            place = self.place(x, self._ticks[0])[0]
            if log:
                self.pen.line((place, self._top, place, bottom), fill=_GRID)
            self._label((place, bottom + 0.9 * _TEXT), f"{x:,.0f}" if log else f"{x:g}", "mm")
        self._label((self._left + _WIDTH / 2, bottom + 2.6 * _TEXT), titles[1], "mm")

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels from the left and from the top."""
        first, last = self._across
        across = (self._scale(x) - first) / ((last - first) or 1)
        up = (y - self._ticks[0]) / (self._ticks[-1] - self._ticks[0])
        left = self._left + 20 + float(across) * (_WIDTH - 40)
        return left, self._top + (1 - up) * self._height

    def legend(self, number: int) -> tuple[float, float]:
        """Where a line of the legend begins, at half its height."""
        return self._left + _WIDTH + _TEXT, self._top + (number + 0.5) * self._line

    def bar(self, x: float, y: float, deviation: float, color: Colour) -> None:
        """A deviation, where there is one."""
        if deviation > 0:
            ends = (*self.place(x, y - deviation), *self.place(x, y + deviation))
            self.pen.line(ends, fill=color, width=2)

    def _label(self, at: tuple[float, float], text: str, anchor: str, ink: Colour = QUIET) -> None:
        self.pen.text(at, text, fill=ink, font=self.font, anchor=anchor)


def _ends(ys: np.ndarray, deviations: np.ndarray) -> tuple[float, float]:
    return float((ys - deviations).min()), float((ys + deviations).max())


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers from below the least to above the largest."""
    span = max(high - low, 1e-3)
    power = 10.0 ** np.floor(np.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * 5 >= span)
    first, last = np.floor(low / step), np.ceil(high / step)
    return [round(float(step * i), 9) for i in np.arange(first, max(last, first + 1) + 1)]
