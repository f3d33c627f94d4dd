"""Findings in a whole data set with boxes: counts, what cannot be so, a sheet; see `data.check`."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float, Int

from vadapt.data.annotated import PROBLEMS
from vadapt.data.detection import BoxedImages
from vadapt.data.progress import progress_bar

_SHOWN_PROBLEMS = 10
_CELL = 320  # pixels of a picture's longer side in the sheet
_QUIET = (128, 128, 128)  # of what is ignored


@dataclasses.dataclass
class BoxSummary:
    """Findings in the images and their objects.

    Attributes:
        objects: of each class that are not ignored; `images` in how many images they are.
        sides: the roots of these objects' areas, in pixels, class by class.
        ignored: objects and regions that do not count, crowds included.
        most: objects and ignored ones of the image that has most.
        sizes: how many images are of each (height, width).
        unreadable: why an element cannot be read, by its index.
    """

    objects: Int[np.ndarray, " k"]
    images: Int[np.ndarray, " k"]
    sides: list[Float[np.ndarray, " _n"]]
    ignored: int
    most: int
    sizes: collections.Counter[tuple[int, int]]
    unreadable: dict[int, str]


def summarise(source: BoxedImages, workers: int | None = None) -> BoxSummary:
    """Reads every element, with a bar that says how long it will take; problems stop nothing."""
    workers = workers or min(16, 2 * (os.cpu_count() or 1))
    unreadable: dict[int, str] = {}
    sizes: collections.Counter[tuple[int, int]] = collections.Counter()
    with progress_bar() as progress, ThreadPoolExecutor(workers) as pool:
        bar = progress.add_task(source.path.name, total=len(source))
        found = pool.map(lambda index: _read(source, index), range(len(source)))
        for index, result in enumerate(found):
            progress.advance(bar)
            if isinstance(result, str):
                unreadable[index] = result
            else:
                sizes[result] += 1
    annotated = source.annotated
    counting = [~(i.ignored | i.crowds) & (i.classes >= 0) for i in annotated]
    classes = [i.classes[here] for i, here in zip(annotated, counting, strict=True)]
    sides = [
        np.sqrt((i.boxes_xyxy[:, 2:] - i.boxes_xyxy[:, :2]).prod(1)[here])
        for i, here in zip(annotated, counting, strict=True)
    ]
    each, length = range(len(source.classes)), len(source.classes)
    every, all_sides = np.concatenate(classes), np.concatenate(sides)
    return BoxSummary(
        objects=np.bincount(every, minlength=length),
        images=np.array([sum(int(number in here) for here in classes) for number in each]),
        sides=[all_sides[every == number] for number in each],
        ignored=sum(int((~here).sum()) for here in counting),
        most=max(len(i.classes) for i in annotated),
        sizes=sizes,
        unreadable=unreadable,
    )


def _read(source: BoxedImages, index: int) -> tuple[int, int] | str:
    """Size of an element, or why it has none."""
    try:
        height, width = source[index]["image"].shape[:2]
    except Exception as error:  # a damaged file may raise anything
        return f"{source.name(index)}: {type(error).__name__}: {error}"
    return height, width


def report(source: BoxedImages, summary: BoxSummary) -> None:
    """Prints the summary as a table and lines."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("id", "class", "objects", "images", "median side", "below 16 px")
    for column in (0, 2, 3, 4, 5):
        table.columns[column].justify = "right"
    for number, name in enumerate(source.classes):
        sides = summary.sides[number]
        spread = ("", "")
        if len(sides):
            spread = (f"{np.median(sides):.1f}", f"{(sides < 16).mean():.0%}")
        count, images = int(summary.objects[number]), int(summary.images[number])
        style = None if count else "red"
        table.add_row(str(number), name, f"{count:,}", f"{images:,}", *spread, style=style)
    console.print(table)
    readable = len(source) - len(summary.unreadable)
    empty = sum(not len(image.classes) for image in source.annotated)
    lines = [
        f"{len(source):,} images, {readable:,} readable, {empty:,} without objects; "
        f"{summary.objects.sum():,} objects, {summary.ignored:,} ignored; at most {summary.most:,} "
        "in one image (config.data.max_boxes)"
    ]
    shown = [f"{n:,} of {h}x{w}" for (h, w), n in summary.sizes.most_common(3)]
    lines.append(f"{len(summary.sizes)} sizes (height x width): {', '.join(shown)}")
    lines += problem_lines(source, summary)
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def problem_lines(source: BoxedImages, summary: BoxSummary) -> list[str]:
    """What is wrong, a count a kind and the first of each; nothing where nothing is."""
    counts = collections.Counter(kind for kind, _ in source.problems)
    lines = []
    for kind in PROBLEMS:
        if counts[kind]:
            where = [place for each, place in source.problems if each == kind]
            lines += _listed(f"{counts[kind]:,} {PROBLEMS[kind]}", where)
    if summary.unreadable:
        named = [*summary.unreadable.values()]
        lines += _listed(f"{len(named):,} images that cannot be read", named)
    return lines


def _listed(title: str, entries: Sequence[str]) -> list[str]:
    more = len(entries) - _SHOWN_PROBLEMS
    shown = [f"  {text}" for text in entries[:_SHOWN_PROBLEMS]]
    return [f"{title}:", *shown, *([f"  and {more:,} more"] if more > 0 else [])]


def draw(path: str, source: BoxedImages, skip: Sequence[int] = (), count: int = 6) -> None:
    """Writes a sheet of elements spread over the data set: the image, and its boxes on it.

    Boxes have their classes' colors; what is ignored is gray.

    Args:
        skip: indices of elements that cannot be read.
        count: rows, or fewer if there are not so many.
    """
    from vadapt import drawing

    usable = [index for index in range(len(source)) if index not in set(skip)]
    places = np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int)
    rows, names, seen = [], [], set()
    palette = [tuple(color) for color in source.palette.tolist()]
    for place in places.tolist():
        record = source[usable[place]]
        image, boxes = drawing.fit(record["image"], _CELL), record["boxes_xyxy"]
        scale = np.array(image.shape[1::-1] * 2) / np.array(record["image"].shape[1::-1] * 2)
        pairs = zip(record["box_classes"].tolist(), record["box_ignored"].tolist(), strict=True)
        drawn = [None if out else number for number, out in pairs]
        colors = [_QUIET if number is None else palette[number] for number in drawn]
        seen |= {*drawn}
        rows.append([image, drawing.draw_boxes(image, boxes * scale, colors)])
        names.append(f"{os.path.basename(record['name'])[-28:]}\n{len(boxes)} boxes")
    known = sorted(number for number in seen if number is not None)
    legend = [(source.classes[number], palette[number]) for number in known]
    legend += [("ignored", _QUIET)] * (None in seen)
    sheet = drawing.contact_sheet(rows, ["image", "boxes"], names, cell=_CELL, legend=legend)
    drawing.save_png(path, sheet)
