"""Where the candidates of a data set are kept: one packed file a sub-set, or the text files of PAD.

A sub-set `<sub>` holds `<sub>/thermal/<image>`; its candidates are `<sub>/roi.npz`, or else
`<sub>/roi/<stem>.txt` with a line `x,y,w,h` each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from vadapt.data import npz
from vadapt.data.untrusted import parse_json, read_lines
from vadapt.errors import DataError

PACKED = "roi.npz"
TEXTS = "roi"
_MOST_BYTES = 2**31  # of a packed file's arrays; all of MSIP has some 0.1 GB
_MOST_MIB = 16  # of a text file, of one image
NO_ROIS: Int32[np.ndarray, "n 4"] = np.zeros((0, 4), np.int32)


class RoiTable(Mapping[str, np.ndarray]):
    """Candidates by file name, int32 [n, 4] of (x, y, w, h), in three flat arrays.

    >>> table = RoiTable.of({"7.png": np.array([[1, 2, 40, 50]], np.int32), "8.png": NO_ROIS})
    >>> table["7.png"].tolist(), len(table["8.png"]), "9.png" in table
    ([[1, 2, 40, 50]], 0, False)
    """

    def __init__(
        self, names: list[str], offsets: np.ndarray, boxes: np.ndarray, settings: dict[str, Any]
    ):
        self._place = {name: place for place, name in enumerate(names)}
        self._offsets, self._boxes = offsets, boxes
        self.settings = settings  # of the search that found them; empty if they are not known

    @classmethod
    def of(cls, rois: Mapping[str, np.ndarray], settings: dict[str, Any] | None = None) -> RoiTable:
        """Packs them."""
        offsets = np.cumsum([0, *(len(boxes) for boxes in rois.values())], dtype=np.int64)
        boxes = np.concatenate([NO_ROIS, *rois.values()]).astype(np.int32)
        return cls(list(rois), offsets, boxes, settings or {})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RoiTable:
        """Reads what `save` wrote; a DataError says what is wrong with it."""
        try:
            path = Path(path)
            npz.heads(path, _MOST_BYTES)
            settings = parse_json(str(npz.read(path, "settings")), path)
            names, offsets, boxes = (npz.read(path, key) for key in ("names", "offsets", "boxes"))
            if not _fit(names, offsets, boxes) or not isinstance(settings, dict):
                raise ValueError("its arrays do not belong together")
            return cls(names.tolist(), offsets, boxes, settings)
        except (ValueError, DataError) as error:
            raise DataError(
                f"cannot read the candidates in {str(path)!r} ({error}); delete the file and run "
                "python -m vadapt.data.roi_candidates again"
            ) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it under another name first, so that a killed run leaves no half of a file."""
        path = Path(path)
        unfinished = path.with_name(f".{path.stem}.unfinished.npz")
        np.savez_compressed(
            unfinished,
            names=np.array(list(self._place), dtype=np.str_),
            offsets=self._offsets,
            boxes=self._boxes,
            settings=json.dumps(self.settings),
        )
        unfinished.replace(path)

    @property
    def content(self) -> tuple[Any, ...]:
        """All that it holds: names, rows of each, boxes."""
        return tuple(self._place), self._offsets, self._boxes

    def __getitem__(self, name: str) -> Int32[np.ndarray, "n 4"]:
        place = self._place[name]
        return self._boxes[self._offsets[place] : self._offsets[place + 1]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)


class SubsetRois:
    """The candidates of one sub-set, however they are kept; none where there is no file.

    The packed file goes first. `kind` is "packed", "text" or "none".
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self.table: RoiTable | None = None
        self.kind = "none"
        if (self.folder / PACKED).is_file():
            self.table, self.kind = RoiTable.load(self.folder / PACKED), "packed"
        elif (self.folder / TEXTS).is_dir():
            self.kind = "text"

    def __call__(self, image_name: str) -> Int32[np.ndarray, "n 4"]:
        """Return the candidates of the image with this file name."""
        if self.table is not None:
            return self.table.get(image_name, NO_ROIS)
        if self.kind == "text":
            return read_text(self.folder / TEXTS / f"{stem(image_name)}.txt")
        return NO_ROIS


def _fit(names: np.ndarray, offsets: np.ndarray, boxes: np.ndarray) -> bool:
    """Whether every name has its rows of four numbers."""
    shapes = names.ndim == offsets.ndim == 1 and boxes.ndim == 2 and boxes.shape[1] == 4
    whole = all(np.issubdtype(array.dtype, np.integer) for array in (offsets, boxes))
    if not shapes or not whole or len(offsets) != len(names) + 1:
        return False
    ends = offsets[0] == 0 and offsets[-1] == len(boxes)
    return bool(ends and (np.diff(offsets) >= 0).all() and len(set(names.tolist())) == len(names))


def stem(image_name: str) -> str:
    """A file name up to its first dot, by which text files are named."""
    return image_name.split(".", 1)[0]


def read_text(path: str | os.PathLike[str]) -> Int32[np.ndarray, "n 4"]:
    """Candidates from lines `x,y,w,h` of integers; none if there is no such file.

    Raises:
        DataError: a line is anything else.
    """
    try:
        lines = [part for line in read_lines(Path(path), _MOST_MIB) for part in line.split()]
    except FileNotFoundError:
        return NO_ROIS
    try:
        rows = [[int(number) for number in line.split(",")] for line in lines]
        if any(len(row) != 4 for row in rows):
            raise ValueError("four whole numbers a line")
        return np.array(rows, np.int32).reshape(-1, 4)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{str(path)!r} is no list of x,y,w,h: {error}") from error
