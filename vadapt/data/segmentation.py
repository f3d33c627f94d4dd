"""Segmentation data in folders: images, masks, and one small file that says what the masks mean.

`dataset.yaml`, beside the folders; every line of it may be left out:

    classes: [road, person, car]         # their places are the train ids
    images: images/{split}/*             # * is a sample's name, with the folders in it, and the
    masks: masks/{split}/*_mask.png      #   same in both; {split} is the split's folder
    splits: {train: train, val: [city_a, city_b], test: test.txt}  # folders, or a list of names
    remap: {7: 0, 24: 1, 26: 2, 3: ignore, rest: ignore}           # raw id -> train id
    ignore: [255, [0, 0, 0]]             # raw ids, or colours, that do not count
    palette: [[128, 64, 128], [220, 20, 60], [0, 0, 142]]  # the classes' colours, to draw them
                                         #   and to read masks that are colour pictures
    channel: 0                           # of colour masks that hold the id in one channel
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8

from vadapt.data.decode import decode_image, decode_mask
from vadapt.data.identity import Identity, identity_of, sized
from vadapt.data.label_maps import IGNORE, UNKNOWN, class_colours, look_up, lookup_table
from vadapt.data.layouts import LAYOUTS, YAML, Layout, read_layout
from vadapt.data.pairs import list_pairs
from vadapt.data.sources import Record
from vadapt.errors import ConfigError, DataError, nearest


class Segmentation:
    """Images with the classes of their pixels.

    Records have "image" (uint8 [h, w, c]), "mask" (uint8 [h, w]: train ids, 255 is ignored) and
    "name" (the image's path in the data set). They are sorted by name.

    Args:
        path: the root of the data set.
        split: a name of `Layout.splits`, or a folder that {split} stands for; "" takes all.
        layout: how the data lies there: a `Layout`, a name in `vadapt.data.layouts.LAYOUTS`, or
            None: what `dataset.yaml` says, and without one `images/` and `masks/` with ids as
            they are.
        channels: of the images, as for `vadapt.data.sources.Folder`.
        labelled: False reads the images alone (of a test set); records then have no "mask".

    Raises:
        DataError: there is no image, an image has no mask, the split is unknown, or the file says
            what cannot be; on reading, a mask has another size than its image, or an id or colour
            that nothing names.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for folder, value in (("images", 90), ("masks", 1)):
    ...         os.mkdir(f"{root}/{folder}")
    ...         Image.new("L", (6, 4), value).save(f"{root}/{folder}/a.png")
    ...     record = Segmentation(root)[0]
    ...     record["image"].shape, record["mask"].shape, record["name"]
    ((4, 6, 3), (4, 6), 'images/a.png')
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str = "",
        *,
        layout: Layout | str | None = None,
        channels: int = 3,
        labelled: bool = True,
    ):
        if channels not in (1, 3):
            raise ConfigError(f"channels is {channels}; it must be 1 (grey) or 3 (colour)")
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            raise DataError(f"no folder {str(self.path)!r}; expected a data set's root")
        if isinstance(layout, str):
            if layout not in LAYOUTS:
                raise ConfigError(f"unknown layout {layout!r}; {nearest(layout, LAYOUTS)}")
            layout = LAYOUTS[layout]
        self.layout = layout or read_layout(self.path / YAML)
        self.split, self.channels, self.labelled = split, channels, labelled
        self._reader = MaskReader(self.layout)
        self._pairs = list_pairs(self.path, self.layout, split, labelled)

    def __len__(self) -> int:
        return len(self._pairs)

    def __repr__(self) -> str:
        return (
            f"Segmentation({str(self.path)!r}, {self.split!r}, channels={self.channels}, "
            f"labelled={self.labelled})"
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by train id; empty where nothing says how many classes there are."""
        return self.layout.classes

    @property
    def palette(self) -> UInt8[np.ndarray, "k 3"]:
        """A colour per class, to draw labels."""
        if self.layout.palette:
            return np.array(self.layout.palette, np.uint8)
        return class_colours(len(self.classes) or 32)

    def name(self, index: int) -> str:
        return str(self.path / self._pairs[index][0])

    def mask_name(self, index: int) -> str:
        """The path of an element's mask."""
        return str(self.path / self._pairs[index][1])

    def identity(self) -> Identity:
        files = (file for pair in self._pairs for file in pair if file)
        return identity_of(len(self), self.layout, sized(self.path, files))

    def fingerprint(self) -> str:
        """A hash of the layout and of all files' names and contents, the same wherever they lie.

        It reads every file: labels that were corrected in place have the size that they had.
        """
        digest = hashlib.sha256(f"{self.layout}{self.channels}{self.labelled}".encode())
        files = [file for pair in self._pairs for file in pair]
        with ThreadPoolExecutor() as pool:
            for file, content in zip(files, pool.map(self._digest, files), strict=True):
                digest.update(f"{file} {content}\n".encode())
        return digest.hexdigest()[:16]

    def _digest(self, file: str) -> str:
        return hashlib.sha256((self.path / file).read_bytes()).hexdigest() if file else ""

    def __getitem__(self, index: int) -> Record:
        image_file, mask_file = self._pairs[index]
        image = decode_image((self.path / image_file).read_bytes(), self.channels)
        record: Record = {"image": image, "name": image_file}
        if not self.labelled:
            return record
        raw = decode_mask((self.path / mask_file).read_bytes())
        if raw.shape[:2] != image.shape[:2]:
            raise DataError(
                f"{self.mask_name(index)} has {raw.shape[0]}x{raw.shape[1]} pixels, its image "
                f"{image.shape[0]}x{image.shape[1]}; they must be alike"
            )
        try:
            return record | {"mask": self._reader(raw)}
        except DataError as error:
            raise DataError(f"{self.mask_name(index)}: {error}") from error


class MaskReader:
    """From the raw values of masks to train ids, as a layout says."""

    def __init__(self, layout: Layout):
        self.layout = layout
        ignored = [value for value in layout.ignore if isinstance(value, int)]
        self.table = lookup_table(
            layout.remap, len(layout.classes), rest=layout.rest, ignored=ignored
        )
        colours = {colour: number for number, colour in enumerate(layout.palette)}
        colours |= {value: IGNORE for value in layout.ignore if isinstance(value, tuple)}
        packed = _pack(np.array(list(colours), np.int64).reshape(-1, 3))
        order = packed.argsort()
        self._colours = packed[order]
        self._ids = np.array(list(colours.values()), np.uint8)[order]

    def __call__(self, raw: Integer[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "h w"]:
        """Train ids, 255 where ignored.

        Raises:
            DataError: names every id or colour that is none of a class, and how often it occurs.
        """
        if raw.ndim == 3 and self.layout.channel is None:
            return self._from_colours(raw)
        ids = raw if raw.ndim == 2 else raw[..., self.layout.channel]
        label, unknown = look_up(ids, self.table)
        if not unknown:
            return label
        some = next(iter(unknown))
        raise DataError(
            f"unknown ids {_counted(unknown)}; known are "
            f"{_ranges(np.flatnonzero(self.table != UNKNOWN).tolist())}. Add them to `classes`, or "
            f"write `remap: {{..., {some}: ignore}}` or `remap: {{..., rest: ignore}}` in {YAML}"
        )

    def _from_colours(self, raw: Integer[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w"]:
        if not len(self._colours):
            raise DataError(
                f"a mask of colours: write `palette: [[r, g, b], ...]`, one per class, in {YAML}; "
                "or `channel: 0`, if the first channel holds the ids"
            )
        packed = _pack(raw)
        places = np.minimum(np.searchsorted(self._colours, packed), len(self._colours) - 1)
        known = self._colours.take(places) == packed
        if known.all():
            return self._ids.take(places)
        values, counts = np.unique(packed[~known], return_counts=True)
        shown = {
            f"[{value >> 32}, {value >> 16 & 0xFFFF}, {value & 0xFFFF}]": count
            for value, count in zip(values.tolist(), counts.tolist(), strict=True)
        }
        raise DataError(
            f"unknown colours {_counted(shown)}; add them to `palette` with a class, or to "
            f"`ignore`, in {YAML}"
        )


def _pack(colours: Integer[np.ndarray, "*n c"]) -> Integer[np.ndarray, "*n"]:
    red, green, blue = np.moveaxis(colours[..., :3].astype(np.int64), -1, 0)
    return red << 32 | green << 16 | blue


def _counted(unknown: Mapping[int, int] | Mapping[str, int]) -> str:
    shown = [f"{value} ({count:,} pixels)" for value, count in list(unknown.items())[:12]]
    return ", ".join(shown) + (f" and {len(unknown) - 12} more" if len(unknown) > 12 else "")


def _ranges(ids: list[int]) -> str:
    """Sorted ids in words: 0..18, 255."""
    runs: list[list[int]] = []
    for id in ids:
        if runs and id == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], id]
        else:
            runs.append([id])
    return ", ".join("..".join(map(str, run)) for run in runs)
