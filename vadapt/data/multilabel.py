"""Images with labels: of published data sets, of a table of one's own, of folders, of scenes.

Records have "image" (uint8 [h, w, c]), "labels" (int8 [l]: 1 there, 0 absent, -1 in doubt), where
they are known "areas" (float32 [l]: pixels of each label's objects), and "name". Sources have
`classes`, the labels' names, and `targets`, all labels at once, which opens no image.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int8

from vadapt.data import fgvc, vtab
from vadapt.data.decode import decode_image
from vadapt.data.identity import Identity, identify, identity_of, sized
from vadapt.data.label_files import Labels, read_coco, read_table, read_voc
from vadapt.data.scenes import CATEGORIES, SceneOptions, Scenes
from vadapt.data.sources import IMAGE_SUFFIXES, Record, Tfds, find_files
from vadapt.data.transforms import crop_and_resize
from vadapt.data.untrusted import check_names
from vadapt.errors import ConfigError, DataError, nearest
from vadapt.options import accepted

LAYOUTS: dict[str, Callable[..., Labels]] = {
    "table": read_table,
    "coco2014": functools.partial(read_coco, year="2014"),
    "coco2017": functools.partial(read_coco, year="2017"),
    "voc2007": read_voc,
    "fgvc": fgvc.read_fgvc,
    **{
        name: functools.partial(fgvc.read_fgvc, num_classes=number)
        for name, number in fgvc.CLASSES.items()
    },
    **{f"vtab_{name}": functools.partial(vtab.read_vtab, task=name) for name in vtab.TASKS},
}


class LabelledImages:
    """Images and their labels, in the order of the file that lists them.

    Args:
        path: the root of the data set.
        split: as its files call it; of a table "" takes all.
        layout: a name in `LAYOUTS`: "table" is `labels.csv`, see `label_files.read_table`.
        split_seed: draws what validates, of a layout that holds it out: see `fgvc.read_fgvc`.
        channels: of the images, as for `vadapt.data.sources.Folder`.

    Raises:
        DataError: see the readers in `vadapt.data.label_files`, `fgvc` and `vtab`.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Image.new("L", (6, 4), 9).save(f"{root}/a.png")
    ...     _ = Path(f"{root}/labels.csv").write_text("file,labels\\na.png,cat;dog\\n")
    ...     source = LabelledImages(root)
    ...     source.classes, source[0]["labels"].tolist(), source[0]["image"].shape
    (('cat', 'dog'), [1, 1], (4, 6, 3))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str = "",
        *,
        layout: str = "table",
        split_seed: int = 0,
        channels: int = 3,
    ):
        if channels not in (1, 3):
            raise ConfigError(f"channels is {channels}; it must be 1 (grey) or 3 (colour)")
        if layout not in LAYOUTS:
            raise ConfigError(f"unknown layout {layout!r}; {nearest(layout, LAYOUTS)}")
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            raise DataError(f"no folder {str(self.path)!r}; expected a data set's root")
        self.split, self.layout, self.channels = split, layout, channels
        drawn = {"split_seed": split_seed} if "split_seed" in accepted(LAYOUTS[layout]) else {}
        if split_seed and not drawn:
            raise ConfigError(
                f"the layout {layout!r} draws no split: leave split_seed at 0, not {split_seed}"
            )
        self._labels = LAYOUTS[layout](self.path, split, **drawn)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        return self._labels.classes

    @property
    def targets(self) -> Int8[np.ndarray, "n l"]:
        """The labels of all images."""
        return self._labels.targets

    def __len__(self) -> int:
        return len(self._labels.files)

    def __repr__(self) -> str:
        return f"LabelledImages({str(self.path)!r}, {self.split!r}, layout={self.layout!r})"

    def name(self, index: int) -> str:
        return str(self.path / self._labels.files[index])

    def key(self, index: int) -> str:
        return self._labels.files[index]

    def identity(self) -> Identity:
        files, *known = self._labels
        return identity_of(len(self), sized(self.path, files), *known)

    def __getitem__(self, index: int) -> Record:
        file, areas = self._labels.files[index], self._labels.areas
        image = decode_image((self.path / file).read_bytes(), self.channels)
        record = {"image": image, "labels": self._labels.targets[index], "name": file}
        return record if areas is None else record | {"areas": areas[index]}


class ClassFolders:
    """Images in a folder for each class, as ImageNet's unpack: `path/split/CLASS/*`; one label.

    Args:
        classes: names in their order; by default those of the folders, sorted.

    Raises:
        DataError: there is no such folder, no image, or a folder that is none of the classes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str = "train",
        *,
        classes: Sequence[str] = (),
        channels: int = 3,
    ):
        self.path = Path(path).expanduser() / split
        self.channels = channels
        if not self.path.is_dir():
            raise DataError(f"no folder {str(self.path)!r}; expected one with a folder a class")
        files = [file for file in find_files(self.path, IMAGE_SUFFIXES) if "/" in file]
        if not files:
            raise DataError(f"no images in folders of {str(self.path)!r}; expected CLASS/IMAGE")
        names = [file.partition("/")[0] for file in files]
        self.classes = tuple(classes) or tuple(sorted(set(names)))
        check_names(self.classes, "classes", f"the classes of {str(self.path)!r}")
        unknown = sorted(set(names) - set(self.classes))
        if unknown:
            raise DataError(
                f"{len(unknown)} folders in {str(self.path)!r} are no class: {unknown[0]!r}; "
                f"{nearest(unknown[0], self.classes)}"
            )
        places = {name: number for number, name in enumerate(self.classes)}
        self._files, self._numbers = files, np.array([places[name] for name in names], np.int32)

    @property
    def targets(self) -> Int8[np.ndarray, "n l"]:
        """The labels of all images."""
        return (self._numbers[:, None] == np.arange(len(self.classes))).astype(np.int8)

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        return f"ClassFolders({str(self.path)!r}, {len(self.classes)} classes)"

    def name(self, index: int) -> str:
        return str(self.path / self._files[index])

    def key(self, index: int) -> str:
        return self._files[index]

    def identity(self) -> Identity:
        return identity_of(len(self), self.classes, sized(self.path, self._files))

    def __getitem__(self, index: int) -> Record:
        file = self._files[index]
        return {
            "image": decode_image((self.path / file).read_bytes(), self.channels),
            "labels": one_hot(self._numbers[index], len(self.classes)),
            "name": file,
        }


class TfdsLabels(Tfds):
    """A data set of TFDS with a feature "labels", of 1, 0 and -1; see `datasets/` for some.

    Its classes stand in its metadata, under "classes".
    """

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels; DataError if the data set has none."""
        names = (self.metadata or {}).get("classes")
        if not names:
            raise DataError(f"{self.title} names no classes in its metadata")
        check_names(names, "classes", f"the metadata of {self.title}")
        return tuple(names)

    @functools.cached_property
    def targets(self) -> Int8[np.ndarray, "n l"]:
        """The labels of all images, from one pass that decodes none."""
        return np.stack([self._records[index]["labels"] for index in range(len(self))])


class SceneLabels:
    """Embedded scenes with what stands in them: 20 kinds of vehicles, persons and signs.

    Each is in a quarter of the scenes, four or five in one. What the scenes' masks tell apart
    (road, sky, vehicle, ...) would be no task: nearly every scene has all of it. Areas are the
    visible pixels; objects of next to none do not count (see `Scene.instances`).

    Args:
        fields: of the scenes, which records have besides.

    >>> record = SceneLabels(4)[2]
    >>> record["image"].shape, [CATEGORIES[i] for i in np.flatnonzero(record["labels"])]
    ((64, 64, 3), ['pickup', 'bus', 'cyclist', 'yield'])
    """

    classes = CATEGORIES

    def __init__(
        self,
        num_scenes: int,
        *,
        view: str = "visible",
        seed: int = 0,
        options: SceneOptions | None = None,
        fields: Sequence[str] = ("image",),
    ):
        self._fields = tuple(fields)
        read = tuple(dict.fromkeys((*fields, "instances", "box_categories")))
        options = options or SceneOptions()
        self._scenes = Scenes(num_scenes, view=view, fields=read, seed=seed, options=options)

    @functools.cached_property
    def targets(self) -> Int8[np.ndarray, "n l"]:
        """The labels of all scenes: draws them."""
        return np.stack([self[index]["labels"] for index in range(len(self))])

    def __len__(self) -> int:
        return len(self._scenes)

    def __repr__(self) -> str:
        return f"SceneLabels({self._scenes!r})"

    def identity(self) -> Identity:
        return identify(self._scenes)

    def __getitem__(self, index: int) -> Record:
        scene = self._scenes[index]
        categories = scene["box_categories"]
        pixels = np.bincount(scene["instances"].ravel(), minlength=len(categories) + 1)[1:]
        areas = np.bincount(categories, pixels, len(CATEGORIES)).astype(np.float32)
        shown = {name: scene[name] for name in self._fields}
        return shown | {"labels": (areas > 0).astype(np.int8), "areas": areas}


class SceneObjects:
    """The largest object of each embedded scene, cut out with a margin: one label of 20.

    Scenes are drawn at twice the size of the cuts; one without objects gives way to another.

    >>> record = SceneObjects(4)[1]
    >>> record["image"].shape, int(record["labels"].sum())
    ((64, 64, 3), 1)
    """

    classes = CATEGORIES
    margin = 0.15  # of the box's longer side, on every side of it

    def __init__(
        self,
        num_scenes: int,
        *,
        view: str = "visible",
        seed: int = 0,
        options: SceneOptions | None = None,
    ):
        options = options or SceneOptions()
        self.num_scenes, self.size = num_scenes, (options.height, options.width)
        large = dataclasses.replace(options, height=2 * options.height, width=2 * options.width)
        fields = ("image", "boxes_xyxy", "box_categories")
        # More than are asked for: what has no objects is passed over.
        self._scenes = Scenes(64 * num_scenes, view=view, fields=fields, seed=seed, options=large)

    def identity(self) -> Identity:
        return identity_of(len(self), self._scenes.identity())

    @functools.cached_property
    def targets(self) -> Int8[np.ndarray, "n l"]:
        """The labels of all cuts: draws them."""
        return np.stack([self[index]["labels"] for index in range(len(self))])

    def __len__(self) -> int:
        return self.num_scenes

    def __repr__(self) -> str:
        return f"SceneObjects({self.num_scenes}, size={self.size}, {self._scenes!r})"

    def __getitem__(self, index: int) -> Record:
        scene = self._scenes[index]
        while not len(scene["boxes_xyxy"]):
            index += self.num_scenes
            scene = self._scenes[index]
        left, top, right, bottom = scene["boxes_xyxy"].T
        largest = int(((right - left) * (bottom - top)).argmax())
        box = scene["boxes_xyxy"][largest].astype(int)
        height, width = scene["image"].shape[:2]
        spare = round(self.margin * max(box[2] - box[0], box[3] - box[1]))
        left, top = np.maximum(box[:2] - spare, 0).tolist()
        right, bottom = np.minimum(box[2:] + spare, (width, height)).tolist()
        place = (top, left, bottom - top, right - left)
        record = crop_and_resize({"image": scene["image"]}, place, self.size)
        return record | {"labels": one_hot(scene["box_categories"][largest], len(CATEGORIES))}


def one_hot(number: Any, length: int) -> Int8[np.ndarray, " {length}"]:
    """1 in one place."""
    return (np.arange(length) == number).astype(np.int8)
