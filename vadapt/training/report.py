"""An evaluation beyond its scores: classes, confusions and images, as files."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from vadapt.charts import NO_CLASS, draw_confusion
from vadapt.drawing import save_png
from vadapt.errors import ConfigError
from vadapt.runtime.storage import writing

MOST_SHOWN = 100  # images on a sheet
CORNER = "truth (rows), prediction (columns)"
_ALL = 24  # classes up to which a table has all
_ENDS = 10  # of more, the worst and the best
_COLUMNS = 5  # of a table on the terminal; the file has all
_HIGHEST = 6400  # pixels of the rows of a sheet
_LETTERS = 28  # of an image's name

Row = Mapping[str, str | float | int]
Sheet = UInt8[np.ndarray, "h w 3"]


class Images(NamedTuple):
    """The scores of a test set's images, the worst first; those without a score come last."""

    score: str  # its name
    elements: Int[np.ndarray, " n"]  # their numbers in the source
    scores: Float[np.ndarray, " n"]
    name: Callable[[int], str]  # of an element
    draw: Callable[[Sequence[int]], Sheet]  # a row each of the first so many, by their places

    def worst(self, number: int) -> list[int]:
        """The places of the worst, at most so many, in order; only such as have a score."""
        return list(range(min(number, int((~np.isnan(self.scores)).sum()))))


@dataclass(frozen=True)
class Report:
    """One test set looked at closely.

    Attributes:
        rows: one a class, with the same columns, the first of which is "class". Numbers are counts
            or in percent, NaN where there is nothing to say.
        by: the column by which classes are better or worse.
        confusion: a row a true class, a column a predicted one, and a last column of predictions
            that are no class.
        images: their scores.
    """

    rows: Sequence[Row]
    by: str
    confusion: Int[np.ndarray, "k k+1"] | None = None
    images: Images | None = None


def check_number(number: int) -> int:
    """The number of images on a sheet.

    Raises:
        ConfigError: it is out of range.
    """
    if 0 <= number <= MOST_SHOWN:
        return number
    raise ConfigError(
        f"config.eval.num_worst is {number}; a sheet has from 0 (none is drawn) to {MOST_SHOWN} "
        "images, and worst.csv all"
    )


def sort_images(
    elements: Int[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    *,
    lowest_first: bool,
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The order from the worst score on, NaN last, equal ones by element; and these elements."""
    bad = np.asarray(scores, np.float64) * (1 if lowest_first else -1)
    order = np.lexsort((elements, bad))  # which has NaN last
    return order, np.asarray(elements)[order]


def sheet_cell(number: int) -> int:
    """Pixels of an image's longer side on a sheet of so many: what all come to is bounded."""
    return max(64, min(192, _HIGHEST // max(number, 1)))


def caption(name: str, score: str) -> str:
    """The text beside an image on a sheet: the end of its name, which tells files apart.

    >>> caption("/data/images/val/a_street_by_night_0001.png", "mIoU 3.2")
    '..._street_by_night_0001.png\\nmIoU 3.2'
    """
    shown = name if len(name) <= _LETTERS else "..." + name[3 - _LETTERS :]
    return f"{shown}\n{score}"


def write_report(folder: Path, report: Report, num_worst: int) -> list[str]:
    """Write the files of a report into a folder of its own; returns their names.

    `classes.csv`, `confusion.csv` and `.png`, `worst.csv` and `.png`, as far as there is something
    to tell; of former ones nothing is left.

    Raises:
        TrainingError: a file cannot be written.
    """
    classes = [str(row["class"]) for row in report.rows]
    names = ["classes.csv"]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("confusion.csv", "confusion.png", "worst.csv", "worst.png"):
            (folder / name).unlink(missing_ok=True)
        columns = [*report.rows[0]] if report.rows else ["class"]
        lines = ([_shown(row[name]) for name in columns] for row in report.rows)
        _write_csv(folder / "classes.csv", columns, lines)
        if report.confusion is not None:
            names += ["confusion.csv", "confusion.png"]
            named = zip(classes, report.confusion.tolist(), strict=True)
            lines = ([name, *counts] for name, counts in named)
            _write_csv(folder / "confusion.csv", [CORNER, *classes, NO_CLASS], lines)
            save_png(folder / "confusion.png", draw_confusion(report.confusion, classes))
        images = report.images
        if images is not None:
            names.append("worst.csv")
            scored = zip(images.elements.tolist(), images.scores.tolist(), strict=True)
            lines = ([images.name(element), _shown(score)] for element, score in scored)
            _write_csv(folder / "worst.csv", ["image", images.score], lines)
    worst = [] if report.images is None else report.images.worst(num_worst)
    if report.images is not None and worst:
        sheet = report.images.draw(worst)  # which reads: what fails there is no fault of writing
        names.append("worst.png")
        with writing(folder / "worst.png"):
            save_png(folder / "worst.png", sheet)
    return names


def class_table(title: str, report: Report) -> str:
    """The classes in lines for people, the worst first: of more than 24 the worst and best ten.

    Those without a score are named below. The first columns of the rows are shown.
    """
    scored = [math.isfinite(float(row[report.by])) for row in report.rows]
    told = [row for row, has in zip(report.rows, scored, strict=True) if has]
    silent = [str(row["class"]) for row, has in zip(report.rows, scored, strict=True) if not has]
    told.sort(key=lambda row: float(row[report.by]))
    heading = f"{title}: {len(report.rows)} classes by {report.by}, the worst first"
    rows: list[Row | None] = [*told]
    if len(told) > _ALL:
        rows = [*told[:_ENDS], None, *told[-_ENDS:]]
        heading += f"; the {_ENDS} worst and the {_ENDS} best"
    if not told:
        return f"{heading}: none has a score"
    columns = [*told[0]][:_COLUMNS]
    cells = [columns, *(["..."] * len(columns) if r is None else _spoken(r) for r in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [heading]
    for name, *numbers in cells:
        aligned = (f"  {x:>{w}}" for x, w in zip(numbers, widths[1:], strict=True))
        lines.append(f"  {name:{widths[0]}}" + "".join(aligned))
    if silent:
        more = len(silent) - _ENDS
        shown = ", ".join(silent[:_ENDS]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"  without a score: {shown}")
    return "\n".join(lines)


def _spoken(row: Row) -> list[str]:
    name, *values = [*row.values()][:_COLUMNS]
    return [str(name), *(f"{x:.2f}" if isinstance(x, float) else f"{x:,}" for x in values)]


def _shown(value: Any) -> Any:
    """Return a number for a CSV, nothing for NaN."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"


def _write_csv(path: Path, columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(lines)
