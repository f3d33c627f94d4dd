"""From raw downloads to MSIP's own folders, `<sub-set>/thermal/<image>`, with a manifest."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vadapt.datasets.msip.layouts import PARTS, TOTAL, Part, content, plain

MANIFEST = "manifest.tsv"
IMAGES = "thermal"


class Example(NamedTuple):
    """One image of MSIP."""

    subset: str
    name: str  # of the file in MSIP
    path: Path  # of its source
    data: bytes | None  # None: the source as it is


@dataclasses.dataclass(frozen=True)
class Found:
    """A data set in the raw folder: its images after thinning, before dark frames are dropped."""

    part: Part
    folder: Path | None
    images: tuple[Path, ...] = ()


def find(raw: str | os.PathLike[str], parts: Sequence[Part] = PARTS) -> list[Found]:
    """What of the eight data sets lies under the raw folder; the lacking ones have no folder.

    Raises:
        FileNotFoundError: no such folder.
    """
    raw = Path(raw).expanduser()
    folders = sorted(path for path in raw.iterdir() if path.is_dir())
    found = []
    for part in parts:
        folder = next((path for path in folders if plain(path.name) in part.folders), None)
        groups = [] if folder is None else part.find(folder)
        images = tuple(image for group in groups for image in group[:: part.step])
        found.append(Found(part, folder, images))
    return found


def examples(found: Found) -> Iterator[Example]:
    """The images of one data set in the order of their source paths, under their names in MSIP.

    Frames of videos are numbered, and so are files whose names occur twice; others keep theirs.
    """
    part = found.part
    stems = [path.stem for path in found.images]
    numbered = part.is_video or len(set(stems)) < len(stems)
    number = 0
    for path in found.images:
        kept = content(part, path)
        if kept is None:
            continue
        data, suffix = kept
        name = f"{number:07d}" if numbered else path.stem
        yield Example(part.name, name + suffix, path, data if part.crop else None)
        number += 1


def assemble(
    found: Sequence[Found], out: str | os.PathLike[str], *, link: bool = False
) -> dict[str, int]:
    """Writes the folders and the manifest; files that are there already are left as they are.

    Args:
        link: symbolic links in place of copies, for the files that MSIP takes unchanged.

    Returns:
        Images by sub-set.
    """
    from rich.progress import track

    out = Path(out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    lines, counts = [], {}
    for one in found:
        if one.folder is None:
            continue
        folder = out / one.part.name / IMAGES
        folder.mkdir(parents=True, exist_ok=True)
        total = len(one.images)
        for example in track(examples(one), description=one.part.name, total=total):
            _write(folder / example.name, example, link)
            lines.append(f"{example.subset}\t{example.name}\t{example.path}")
            counts[example.subset] = counts.get(example.subset, 0) + 1
    head = "subset\tname\tsource"
    (out / MANIFEST).write_text("\n".join([head, *sorted(lines)]) + "\n", encoding="utf-8")
    return counts


def _write(target: Path, example: Example, link: bool) -> None:
    if target.exists():
        return
    if example.data is None and link:
        target.symlink_to(example.path.resolve())
        return
    unfinished = target.with_name(f".{target.name}")
    unfinished.write_bytes(example.path.read_bytes() if example.data is None else example.data)
    unfinished.replace(target)


def report(found: Sequence[Found], counts: dict[str, int] | None = None) -> str:
    """A line a data set: images against the paper's, and what lacks with where to get it.

    Args:
        counts: images that were taken; without them those found, dark frames of SCUT included.
    """
    lines = [f"{'sub-set':18}{'images':>9}{'paper':>9}  from"]
    total = 0
    for one in found:
        count = len(one.images) if counts is None else counts.get(one.part.name, 0)
        total += count
        lines.append(
            f"{one.part.name:18}{count:>9,}{one.part.expected:>9,}  {one.folder or 'missing'}"
        )
    lines.append(f"{'sum':18}{total:>9,}{TOTAL:>9,}")
    for one in found:
        what = "missing" if one.folder is None else "no image where they are expected"
        if not one.images:
            lines.append(f"{one.part.name}: {what}. Get it from {one.part.where}")
            lines.append(f"    as RAW/{one.part.name}, with {one.part.layout}")
    return "\n".join(lines)
