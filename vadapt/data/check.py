"""Reads a whole data set of masks or boxes and says what is in it, before a run does.

    python -m vadapt.data.check ROOT --split train --out sheet.png

prints images, sizes, the pixels of every class, the ignored share, and every file that cannot be
used; the sheet shows images, labels and both together. `--layout gta` (see `vadapt.data.layouts`)
takes a published data set as it unpacks; else `ROOT/dataset.yaml` says how it lies.

    python -m vadapt.data.check ROOT --layout coco --split val --out sheet.png

does the same for images with boxes (see `vadapt.data.detection.LAYOUTS`): objects, sizes, every box
and record that cannot be so, and the images with their boxes.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Integer

from vadapt.data import check_boxes
from vadapt.data.detection import LAYOUTS as BOX_LAYOUTS
from vadapt.data.detection import BoxedImages
from vadapt.data.label_maps import IGNORE
from vadapt.data.layouts import LAYOUTS, YAML
from vadapt.data.progress import progress_bar
from vadapt.data.resampling import resize_nearest
from vadapt.data.segmentation import Segmentation
from vadapt.errors import UnreadableError, VadaptError

_SHOWN_PROBLEMS = 10
_CELL = 240  # pixels of a picture's longer side in the sheet


@dataclasses.dataclass
class Summary:
    """Findings in the elements that could be read.

    Attributes:
        pixels: by label, 255 included; `images` in how many images a label occurs.
        sizes: how many images are of each (height, width).
        problems: why an element cannot be used, by its index.
    """

    pixels: Integer[np.ndarray, "256"]
    images: Integer[np.ndarray, "256"]
    sizes: collections.Counter[tuple[int, int]]
    problems: dict[int, str]

    @property
    def ignored(self) -> float:
        """The share of pixels that are ignored, 0 to 1."""
        return float(self.pixels[IGNORE] / max(self.pixels.sum(), 1))


def summarise(source: Segmentation, workers: int | None = None) -> Summary:
    """Reads every element, with a bar that says how long it will take; problems stop nothing."""
    workers = workers or min(16, 2 * (os.cpu_count() or 1))
    zeros = np.zeros(256, np.int64)
    summary = Summary(zeros, zeros.copy(), collections.Counter(), {})
    with progress_bar() as progress, ThreadPoolExecutor(workers) as pool:
        bar = progress.add_task(source.path.name, total=len(source))
        try:
            found = pool.map(lambda index: _read(source, index), range(len(source)))
            for index, result in enumerate(found):
                progress.advance(bar)
                if isinstance(result, str):
                    summary.problems[index] = result
                    continue
                size, counts = result
                summary.sizes[size] += 1
                summary.pixels += counts
                summary.images += counts > 0
        finally:
            pool.shutdown(cancel_futures=True)
    return summary


def _read(source: Segmentation, index: int) -> tuple[tuple[int, int], np.ndarray] | str:
    """Size and pixels by label of an element, or why it has none."""
    try:
        label = source[index]["mask"]
    except UnreadableError as error:
        return f"{source.name(index)} or its mask: {error}"
    except VadaptError as error:
        return str(error)
    except Exception as error:  # a damaged file may raise anything
        return f"{source.name(index)} or its mask: {type(error).__name__}: {error}"
    height, width = label.shape
    return (height, width), np.bincount(label.ravel(), minlength=256)


def report(source: Segmentation, summary: Summary) -> None:
    """Prints the summary as a table and lines."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    labels = [int(label) for label in np.flatnonzero(summary.pixels) if label != IGNORE]
    known = sorted({*range(len(source.classes)), *labels})
    counted = max(summary.pixels.sum() - summary.pixels[IGNORE], 1)
    table = Table("id", "class", "pixels", "share", "", "images")
    for column in (0, 2, 3, 5):
        table.columns[column].justify = "right"
    longest = max(summary.pixels[known].max(initial=0), 1)
    for label in known:
        pixels, images = int(summary.pixels[label]), int(summary.images[label])
        bar = "█" * round(20 * pixels / longest)
        name, style = _name(source, label), None if pixels else "red"
        share = f"{pixels / counted:.2%}"
        table.add_row(str(label), name, f"{pixels:,}", share, bar, f"{images:,}", style=style)
    console.print(table)
    sizes = sorted(summary.sizes)
    readable = len(source) - len(summary.problems)
    lines = [f"{len(source):,} images, {readable:,} readable; {summary.ignored:.2%} ignored pixels"]
    if len(sizes) > 3:
        most, count = summary.sizes.most_common(1)[0]
        lines.append(
            f"{len(sizes)} sizes, heights {sizes[0][0]}-{sizes[-1][0]}, widths "
            f"{min(w for _, w in sizes)}-{max(w for _, w in sizes)}; {count:,} of {_spoken(most)}"
        )
    elif sizes:
        lines.append(", ".join(f"{summary.sizes[size]:,} of {_spoken(size)}" for size in sizes))
    missing = [_name(source, label) for label in known if not summary.pixels[label]]
    if missing:
        lines.append(f"no pixel of: {', '.join(missing)}")
    if labels == [0] and summary.pixels[IGNORE] and source.layout.remap is None:
        lines.append(
            "the masks hold 0 and 255 alone, and 255 is ignored: is it the foreground? Then write "
            f"`classes: [background, NAME]` and `remap: {{0: 0, 255: 1}}` in {YAML}"
        )
    if summary.problems:
        lines.append(f"{len(summary.problems):,} problems:")
        lines += [f"  {text}" for text in list(summary.problems.values())[:_SHOWN_PROBLEMS]]
        more = len(summary.problems) - _SHOWN_PROBLEMS
        lines += [f"  and {more:,} more"] * (more > 0)
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def draw(path: str, source: Segmentation, skip: Sequence[int] = (), count: int = 6) -> None:
    """Writes a sheet of elements spread over the data set: image, label, and the one on the other.

    Args:
        skip: indices of elements that cannot be read.
        count: rows, or fewer if there are not so many.
    """
    from vadapt import drawing

    usable = [index for index in range(len(source)) if index not in set(skip)]
    places = np.linspace(0, len(usable) - 1, min(count, len(usable))).round().astype(int)
    rows, names, seen = [], [], set()
    for place in places:
        record = source[usable[place]]
        image, label = record["image"], record["mask"]
        height, width = label.shape
        scale = _CELL / max(height, width)
        small = resize_nearest(label, (max(round(height * scale), 1), max(round(width * scale), 1)))
        seen |= set(np.unique(label).tolist())
        painted = drawing.colour_mask(label, source.palette)
        rgb = drawing.to_rgb(image)
        ignored = (label == IGNORE)[..., None]
        both = np.where(ignored, rgb, drawing.overlay(rgb, painted))
        rows.append([image, drawing.colour_mask(small, source.palette), both])
        names.append(os.path.basename(record["name"])[-28:])
    legend: list[tuple[str, Sequence[int]]] = [
        (_name(source, label), tuple(source.palette[label].tolist()))
        for label in sorted(seen)
        if label < len(source.palette)
    ]
    if IGNORE in seen:
        legend.append(("ignored: white", (255, 255, 255)))
    sheet = drawing.contact_sheet(
        rows, ["image", "label", "both"], names, cell=_CELL, legend=legend
    )
    drawing.save_png(path, sheet)


def _name(source: Segmentation, label: int) -> str:
    return source.classes[label] if label < len(source.classes) else f"class {label}"


def _spoken(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]} (height x width)"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if something cannot be used."""
    from vadapt.command_line import print_error, program

    parser = argparse.ArgumentParser(
        prog=program("check", "vadapt.data.check"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", help="the root of the data set")
    parser.add_argument("--split", default="", help="by default everything")
    known = f"of masks: {', '.join(sorted(LAYOUTS))}; of boxes: {', '.join(sorted(BOX_LAYOUTS))}"
    parser.add_argument("--layout", help=known)
    parser.add_argument("--out", metavar="SHEET.png", help="draw some elements")
    parser.add_argument("--rows", type=int, default=6, help="of the sheet")
    parser.add_argument("--workers", type=int, help="threads; by default two a core")
    options = parser.parse_args(arguments)
    try:
        if options.layout in BOX_LAYOUTS:
            return _check_boxes(options)
        source = Segmentation(options.path, options.split, layout=options.layout)
        summary = summarise(source, options.workers)
        report(source, summary)
        if options.out and len(summary.problems) < len(source):
            draw(options.out, source, list(summary.problems), options.rows)
            print(options.out)
    except VadaptError as error:
        print_error(error)
        return 1
    except KeyboardInterrupt:
        return 130
    return 1 if summary.problems else 0


def _check_boxes(options: argparse.Namespace) -> int:
    """The command for images with boxes, whose problems are listed and stop nothing."""
    source = BoxedImages(options.path, options.split, layout=options.layout, bad_records="drop")
    summary = check_boxes.summarise(source, options.workers)
    check_boxes.report(source, summary)
    if options.out and len(summary.unreadable) < len(source):
        check_boxes.draw(options.out, source, list(summary.unreadable), options.rows)
        print(options.out)
    return 1 if summary.unreadable or source.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
