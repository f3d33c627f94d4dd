"""MSIP, the infrared images of PAD, from its assembled folders: `<root>/<sub-set>/thermal/<image>`.

`python -m vadapt.datasets.msip` makes such folders from the eight public data sets, and `python -m
vadapt.data.roi_candidates ROOT` adds the candidates of objects.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from vadapt.data.decode import decode_image
from vadapt.data.identity import Identity, identity_of, sized
from vadapt.data.roi_table import TEXTS, SubsetRois, stem
from vadapt.data.sources import Record
from vadapt.data.untrusted import check_inside
from vadapt.errors import ConfigError, DataError

IMAGES = "thermal"  # the folder of images in a sub-set
SUFFIXES = (".jpg", ".jpeg", ".JPEG", ".png", ".bmp")  # these spellings alone, as published

_log = logging.getLogger("vadapt.data")


class Msip:
    """All images of an MSIP tree; records have "image" and "rois", int32 [n, 4] of (x, y, w, h).

    Sub-sets follow one another by name, or in the order of `subsets`; within one, files are sorted
    by number (by name where a name is no number). "rois" has no row where none are known.

    Args:
        path: the root; every folder in it is a sub-set.
        subsets: the names of those to take.
        data_ratio: keeps every int(1 / data_ratio)-th image, so that 0.4 keeps half, as published.
        channels: as for `vadapt.data.sources.Folder`.

    Raises:
        DataError: the root or a sub-set is missing, has no folder `thermal`, or no image.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     _ = Path(root, "ships", "thermal").mkdir(parents=True)
    ...     Image.new("L", (6, 4), 9).save(f"{root}/ships/thermal/0000001.png")
    ...     source = Msip(root)
    ...     len(source), source[0]["image"].shape, source[0]["rois"].shape
    (1, (4, 6, 3), (0, 4))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        subsets: Sequence[str] | None = None,
        data_ratio: float | int = 1.0,
        channels: int = 3,
    ):
        if not 0 < data_ratio <= 1:
            raise ConfigError(f"data_ratio is {data_ratio}; it must be above 0 and at most 1")
        if channels not in (1, 3):
            raise ConfigError(f"channels is {channels}; it must be 1 (grey) or 3 (colour)")
        self.path = Path(path).expanduser()
        self.channels, self.data_ratio = channels, data_ratio
        self.subsets = list_subsets(self.path, subsets)
        images = {name: list_images(self.path / name) for name in self.subsets}
        self._files = [(name, file) for name, files in images.items() for file in files]
        if not self._files:
            raise DataError(
                f"no images in {str(self.path)!r}/<sub-set>/{IMAGES}; expected "
                + ", ".join(SUFFIXES)
            )
        self._files = self._files[:: int(1 / data_ratio)]
        self._rois = {name: SubsetRois(self.path / name) for name in self.subsets}
        for name, rois in self._rois.items():
            lacking = 0 if rois.table is None else len(set(images[name]) - set(rois.table))
            if lacking:
                _log.warning(
                    "%d of %d images in %s have no candidates yet; go on with: python -m "
                    "vadapt.data.roi_candidates %s",
                    *(lacking, len(images[name]), self.path / name, self.path),
                )

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        return (
            f"Msip({str(self.path)!r}, subsets={self.subsets}, data_ratio={self.data_ratio}, "
            f"channels={self.channels})"
        )

    def __getitem__(self, index: int) -> Record:
        subset, file = self._files[index]
        data = (self.path / subset / IMAGES / file).read_bytes()
        return {"image": decode_image(data, self.channels), "rois": self._rois[subset](file)}

    @property
    def has_rois(self) -> bool:
        """Whether any sub-set has candidates, packed or as text."""
        return any(rois.kind != "none" for rois in self._rois.values())

    def name(self, index: int) -> str:
        subset, file = self._files[index]
        return str(self.path / subset / IMAGES / file)

    def identity(self) -> Identity:
        images = [f"{subset}/{IMAGES}/{file}" for subset, file in self._files]
        tables = [rois.table for rois in self._rois.values() if rois.table is not None]
        texts = [
            f"{subset}/{TEXTS}/{stem(file)}.txt"
            for subset, file in self._files
            if self._rois[subset].kind == "text"
        ]
        packed = (part for table in tables for part in table.content)
        return identity_of(len(self), sized(self.path, images + texts), *packed)


def list_subsets(root: Path, subsets: Sequence[str] | None = None) -> list[str]:
    """The sub-sets of an MSIP tree, by name; names that start with a dot are none.

    Raises:
        DataError: the root, a sub-set or its folder of images is missing.
    """
    if not root.is_dir():
        raise DataError(
            f"no folder {str(root)!r}; expected the root of MSIP, with <sub-set>/{IMAGES}/<image>"
        )
    names = list(subsets or ())
    check_inside(names, "subsets")
    if subsets is None:
        found = (folder.name for folder in root.iterdir() if folder.is_dir())
        names = sorted(name for name in found if not name.startswith("."))
    lacking = [name for name in names if not (root / name / IMAGES).is_dir()]
    if lacking or not names:
        raise DataError(
            f"no folder {IMAGES!r} in {lacking or 'any sub-set'} of {str(root)!r}; every folder of "
            "the root counts as a sub-set unless subsets=[...] names them"
        )
    return names


def list_images(subset: Path) -> list[str]:
    """File names of a sub-set's images, sorted by number, or by name if one is no number."""
    names = [
        entry.name
        for entry in os.scandir(subset / IMAGES)
        if entry.name.endswith(SUFFIXES) and not entry.name.startswith(".")
    ]
    try:
        return sorted(names, key=lambda name: (int(stem(name)), name))
    except ValueError:
        return sorted(names)
