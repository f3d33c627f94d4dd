"""Images with boxes, in one form for all layouts; what becomes of boxes that cannot be so.

A reader fills a `Draft` with what its files say, and `Draft.finish` looks at all of it at once:
each problem has the file and the number of what it is about, is counted, and is handled as
`Handling` says.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import posixpath
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from vadapt.data.decode import image_size
from vadapt.data.label_files import missing_files
from vadapt.data.resampling import Size
from vadapt.data.untrusted import check_inside, check_names
from vadapt.errors import ConfigError, DataError, nearest

REGION = -1  # the class of a region of which no class is known: it is ignored
_ROUNDING = 0.5  # of a pixel: how far files round beyond an edge
_NAMED = 3
_log = logging.getLogger("vadapt.data")

BAD_BOXES = ("clip", "drop", "keep", "raise")
BAD_RECORDS = ("raise", "drop")
# Kinds of problems, in words; the first three are of boxes, the others of records.
PROBLEMS = {
    "beyond": "boxes that reach beyond their image",
    "outside": "boxes with no part in their image",
    "empty": "boxes without an area",
    "number": "boxes that are no four finite numbers",
    "category": "objects of an unknown category",
    "unlisted": "objects of an image that is not listed",
    "doubled": "records that are given twice",
    "missing": "images that are not there",
}
_OF_BOXES = ("beyond", "outside", "empty")


class Problem(NamedTuple):
    """Something that cannot be so: a name of `PROBLEMS`, and the file and the number of it."""

    kind: str
    where: str


@dataclasses.dataclass(frozen=True)
class Handling:
    """What becomes of problems.

    Attributes:
        boxes: that reach beyond their image or have no area: "clip" cuts them at its edges and
            drops those of which nothing is left, "drop" drops them all, "keep" leaves them as they
            are (as in published evaluations), "raise" raises.
        records: unknown categories, images that are missing, what is given twice: "raise", or
            "drop" (of two the later).
    """

    boxes: str = "clip"
    records: str = "raise"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("bad_boxes", self.boxes, BAD_BOXES),
            ("bad_records", self.records, BAD_RECORDS),
        ):
            if value not in known:
                raise ConfigError(f"config.data.{name} is {value!r}; {nearest(value, known)}")

    def of(self, kind: str) -> str:
        """What becomes of problems of a kind."""
        return self.boxes if kind in _OF_BOXES else self.records


class Annotated(NamedTuple):
    """One image and its objects.

    Attributes:
        file: path from the root.
        size: (height, width) of the image, or of the tile; None where the file cannot be read.
        classes: places among the classes, or `REGION`.
        areas: in square pixels, as the files have them or else of the boxes.
        crowds: groups; `ignored` are other objects that do not count.
        corner: left, top, right and bottom of the tile of the file that is meant, if it is one.
    """

    file: str
    size: Size | None
    boxes_xyxy: Float[np.ndarray, "n 4"]
    classes: Int[np.ndarray, " n"]
    areas: Float[np.ndarray, " n"]
    crowds: Bool[np.ndarray, " n"]
    ignored: Bool[np.ndarray, " n"]
    corner: tuple[int, int, int, int] | None = None

    def rows(self, chosen: Any) -> Annotated:
        """The image with some of its objects, by their places or by bools."""
        columns = ("boxes_xyxy", "classes", "areas", "crowds", "ignored")
        return self._replace(**{name: getattr(self, name)[chosen] for name in columns})


_NONE = np.zeros(0)
NO_OBJECTS = Annotated(
    "", None, np.zeros((0, 4)), _NONE.astype(np.int32), _NONE, _NONE > 0, _NONE > 0
)


class Annotations(NamedTuple):
    """The images of one split, their classes, and what is wrong with them."""

    images: list[Annotated]
    classes: tuple[str, ...]
    problems: list[Problem]


class _Box(NamedTuple):
    image: int
    corners: tuple[float, ...]
    number: int
    where: str
    area: float
    crowd: bool
    ignored: bool


class Draft:
    """What the files of a data set say, before it is looked at.

    Args:
        where: what names the images, for messages.
    """

    def __init__(self, root: Path, classes: Sequence[str], where: str):
        check_names(classes, "classes", where)
        self.root, self.classes, self.where = root, tuple(classes), where
        self.problems: list[Problem] = []
        self._images: list[tuple[str, Size | None, Any]] = []
        self._boxes: list[_Box] = []
        self._known: dict[Any, int] = {}

    def problem(self, kind: str, where: str) -> None:
        """Note a problem of `PROBLEMS`."""
        self.problems.append(Problem(kind, where))

    def image(
        self,
        file: str,
        size: Size | None = None,
        *,
        corner: tuple[int, int, int, int] | None = None,
        where: str = "",
    ) -> int | None:
        """Add an image, and return its place; None if it is there already."""
        check_inside([file], where or self.where)
        key = (posixpath.normpath(file), corner)
        if key in self._known:
            self.problem("doubled", f"image {file!r} of {where or self.where}")
            return None
        self._known[key] = len(self._images)
        self._images.append((file, size, corner))
        return self._known[key]

    def box(
        self,
        image: int,
        corners: Sequence[float],
        number: int,
        where: str,
        *,
        area: float = float("nan"),
        crowd: bool = False,
        ignored: bool = False,
    ) -> None:
        """Add an object: left, top, right and bottom, and the place of its class or `REGION`."""
        if len(corners) != 4 or not all(map(math.isfinite, corners)):
            self.problem("number", where)
            return
        self._boxes.append(_Box(image, tuple(corners), number, where, area, crowd, ignored))

    def size(self, image: int) -> Size | None:
        """(height, width) of an image, from its file where nothing says it."""
        file, size, corner = self._images[image]
        if size is None:
            size = _size_of(self.root / file)
            self._images[image] = file, size, corner
        return size

    def read_sizes(self) -> None:
        """Read the sizes of all images whose sizes nothing says, from the heads of their files."""
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(self.size, range(len(self._images))))

    def finish(self, handling: Handling) -> Annotations:
        """The images and what is left of their objects.

        Problems that nothing raises are said in the log, a line a kind.

        Raises:
            DataError: no image is left; or there are problems that raise: names the first.
        """
        lost = self._missing()
        self.read_sizes()
        boxes = self._looked_at(handling)
        self._say(handling)
        places = np.array([box.image for box in boxes], np.int64)
        by_image = np.split(
            np.argsort(places, kind="stable"),
            np.cumsum(np.bincount(places, minlength=len(self._images)))[:-1],
        )
        images = [
            _annotated(*image, [boxes[row] for row in rows])
            for number, (image, rows) in enumerate(zip(self._images, by_image, strict=True))
            if number not in lost
        ]
        if not images:
            raise DataError(f"{self.where} names no image that is there; is it another data set's?")
        return Annotations(images, self.classes, self.problems)

    def _missing(self) -> set[int]:
        lost = missing_files(self.root, [file for file, _, _ in self._images])
        for place in lost:
            self.problem("missing", f"{self._images[place][0]!r} of {self.where}")
        return set(lost)

    def _looked_at(self, handling: Handling) -> list[_Box]:
        """The boxes that stay, cut where they should be; the problems of all are noted."""
        kept = []
        for box in self._boxes:
            _, size, _ = self._images[box.image]
            cut, kind = _cut(box.corners, size)
            if not kind or handling.boxes == "keep":
                kept.append(box)
            elif handling.boxes == "clip" and _has_area(cut):
                kept.append(box._replace(corners=cut))
            if kind:
                self.problem(kind, box.where)
        return kept

    def _say(self, handling: Handling) -> None:
        """Raise what raises, and log the others."""
        counts = Counter(kind for kind, _ in self.problems)
        raised = [kind for kind in PROBLEMS if counts[kind] and handling.of(kind) == "raise"]
        if raised:
            said = "; ".join(self._spoken(kind, counts[kind]) for kind in raised)
            ways = [
                *(["config.data.bad_boxes='clip'"] if {*raised} & {*_OF_BOXES} else []),
                *(["config.data.bad_records='drop'"] if {*raised} - {*_OF_BOXES} else []),
            ]
            raise DataError(f"{said}. Repair them, or give {' and '.join(ways)}")
        for kind, count in sorted(counts.items()):
            _log.warning("%s; config: %s", self._spoken(kind, count), handling.of(kind))

    def _spoken(self, kind: str, count: int) -> str:
        first = [where for each, where in self.problems if each == kind][:_NAMED]
        more = f" and {count - len(first)} more" if count > len(first) else ""
        return f"{self.where}: {count} {PROBLEMS[kind]}: {', '.join(first)}{more}"


def _cut(corners: tuple[float, ...], size: Size | None) -> tuple[tuple[float, ...], str]:
    """A box cut at the edges of its image, and the kind of its problem, if it has one."""
    if not _has_area(corners):
        return corners, "empty"
    if size is None:
        return corners, ""
    edges = (size[1], size[0]) * 2
    cut = tuple(min(max(x, 0.0), float(edge)) for x, edge in zip(corners, edges, strict=True))
    if not _has_area(cut):
        return cut, "outside"
    moved = max(abs(x - y) for x, y in zip(corners, cut, strict=True))
    return cut, "beyond" if moved > _ROUNDING else ""


def _has_area(corners: tuple[float, ...]) -> bool:
    left, top, right, bottom = corners
    return right > left and bottom > top


def _annotated(file: str, size: Size | None, corner: Any, boxes: list[_Box]) -> Annotated:
    corners = np.array([box.corners for box in boxes], np.float64).reshape(-1, 4)
    areas = np.array([box.area for box in boxes], np.float64)
    own = (corners[:, 2:] - corners[:, :2]).prod(1)
    return Annotated(
        file,
        size,
        corners,
        np.array([box.number for box in boxes], np.int32),
        np.where(np.isnan(areas), own, areas),
        np.array([box.crowd for box in boxes], bool),
        np.array([box.ignored for box in boxes], bool),
        corner,
    )


def _size_of(path: Path) -> Size | None:
    """(height, width) of an image file; None if it cannot be read, which its reader will say."""
    try:
        return image_size(path)
    except Exception:  # damaged files raise anything
        return None


def for_training(image: Annotated, margin: float | None = None) -> Annotated:
    """An image with the objects that published recipes train on.

    Objects without an area, or less than a pixel wide or high, go, and so do those outside of the
    image. What is ignored stays so, and is no object.

    Args:
        margin: of the image at the right and the bottom, in which no box may begin: VisDrone's 10.
            None asks for any part in the image.
    """
    left, top, right, bottom = image.boxes_xyxy.T
    kept = (image.areas > 0) & (right - left >= 1) & (bottom - top >= 1)
    if image.size is not None:
        height, width = image.size
        if margin is None:
            kept &= (right > 0) & (bottom > 0) & (left < width) & (top < height)
        else:
            kept &= (left <= width - margin) & (top <= height - margin)
    return image.rows(kept)
