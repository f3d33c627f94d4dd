"""Images with boxes: of published data sets, of one's own files, of TFDS, of scenes.

Records have "image" (uint8 [h, w, c]), "boxes_xyxy" (float32 [n, 4], pixels), "box_classes" (int32
[n]; `annotated.REGION` for ignored regions of no class), "box_crowds" and "box_ignored" (bool [n];
crowds are ignored, too). Sources have `classes`, and `truth`, all objects at once for the scores.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from vadapt.data import aerial_boxes
from vadapt.data.annotated import NO_OBJECTS, Annotated, Draft, Handling, for_training
from vadapt.data.box_files import read_voc, read_yolo
from vadapt.data.coco_boxes import read_coco
from vadapt.data.decode import decode_image
from vadapt.data.identity import Identity, identity_of, sized
from vadapt.data.label_maps import class_colours
from vadapt.data.sources import Record, Tfds
from vadapt.data.tiling import KEEP_RULES, KeepRule, boxes_in_tile, merge_tiles, tile_corners
from vadapt.data.untrusted import check_names
from vadapt.errors import ConfigError, DataError, UnreadableError, nearest
from vadapt.metrics.detection import Found, Truth
from vadapt.options import accepted

BOX_FIELDS = ("boxes_xyxy", "box_classes", "box_crowds", "box_ignored")
LAYOUTS: dict[str, Callable[..., Draft]] = {
    "coco": read_coco,
    "yolo": read_yolo,
    "voc": read_voc,
    "visdrone": aerial_boxes.read_visdrone,
    "visdrone_coco": aerial_boxes.read_visdrone_coco,
    "tiny_person": aerial_boxes.read_tiny_person,
    "flir": aerial_boxes.read_flir,
}
# Which objects and images are there: all, or those that published recipes train on, of which
# VisDrone's leaves out boxes that begin within 10 pixels of the right and the lower edge.
RULES: dict[str, Callable[[Annotated], Annotated]] = {
    "all": lambda image: image,
    "training": for_training,
    "visdrone": functools.partial(for_training, margin=10.0),
}
_MIN_SIDE = 32  # of an image that is trained on


class BoxedImages:
    """Images and the boxes of their objects, in the order of the file that lists them.

    Args:
        path: the root of the data set.
        split: as its files call it.
        layout: a name in `LAYOUTS`; `options` are those of its reader.
        rule: a name in `RULES`. But for "all", images without an object or with a side of fewer
            than 32 pixels are left out, as published recipes do.
        bad_boxes, bad_records: see `vadapt.data.annotated.Handling`.
        tile: cut images into tiles of (height, width), of which each is an element; () does not.
        tile_overlap: pixels that neighbors share, (height, width).
        tile_keep: which cut boxes a tile has: "root" or "area", see `tiling.KEEP_RULES`.
        channels: of the images, as for `vadapt.data.sources.Folder`.

    Raises:
        DataError: see the reader, and `vadapt.data.annotated.Draft.finish`.

    >>> import json, tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Image.new("L", (60, 40), 9).save(f"{root}/a.png")
    ...     objects = [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [5, 6, 20, 10]}]
    ...     _ = Path(f"{root}/mine.json").write_text(json.dumps({
    ...         "images": [{"id": 7, "file_name": "a.png", "width": 60, "height": 40}],
    ...         "categories": [{"id": 3, "name": "boat"}], "annotations": objects}))
    ...     record = BoxedImages(root, annotations="mine.json")[0]
    ...     record["image"].shape, record["boxes_xyxy"].tolist(), record["box_classes"].tolist()
    ((40, 60, 3), [[5.0, 6.0, 25.0, 16.0]], [0])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str = "",
        *,
        layout: str = "coco",
        rule: str = "all",
        bad_boxes: str = "clip",
        bad_records: str = "raise",
        tile: Sequence[int] = (),
        tile_overlap: Sequence[int] = (0, 0),
        tile_keep: str = "root",
        channels: int = 3,
        **options: Any,
    ):
        if channels not in (1, 3):
            raise ConfigError(f"channels is {channels}; it must be 1 (grey) or 3 (colour)")
        chosen = (("layout", layout, LAYOUTS), ("rule", rule, RULES))
        for name, value, known in (*chosen, ("tile_keep", tile_keep, KEEP_RULES)):
            if value not in known:
                raise ConfigError(f"unknown {name} {value!r}; {nearest(value, known)}")
        handling = Handling(bad_boxes, bad_records)
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            raise DataError(f"no folder {str(self.path)!r}; expected a data set's root")
        self.split, self.layout, self.channels = split, layout, channels
        draft = LAYOUTS[layout](self.path, split, **_taken(layout, options))
        self._whole, self.classes, self.problems = draft.finish(handling)
        self._elements = [
            (picture, RULES[rule](part))
            for picture, image in enumerate(self._whole)
            for part in _parts(image, tile, tile_overlap, KEEP_RULES[tile_keep]())
            if rule == "all" or _is_to_learn_from(part)
        ]
        if not self._elements:
            raise DataError(f"no image of {draft.where} has an object that the rule {rule!r} takes")

    @property
    def palette(self) -> np.ndarray:
        """A color a class, to draw boxes, uint8 [k, 3]."""
        return class_colours(max(len(self.classes), 2))

    @property
    def annotated(self) -> list[Annotated]:
        """What is known of every element."""
        return [image for _, image in self._elements]

    def __len__(self) -> int:
        return len(self._elements)

    def __repr__(self) -> str:
        return f"BoxedImages({str(self.path)!r}, {self.split!r}, layout={self.layout!r})"

    def name(self, index: int) -> str:
        return str(self.path / self.key(index))

    def key(self, index: int) -> str:
        image = self._elements[index][1]
        return image.file if image.corner is None else f"{image.file} {image.corner}"

    def identity(self) -> Identity:
        images = self.annotated
        columns = zip(
            *((i.boxes_xyxy, i.classes, i.crowds, i.ignored) for i in images), strict=True
        )
        places = ((i.file, i.corner, len(i.classes)) for i in images)
        files = sized(self.path, dict.fromkeys(image.file for image in images))
        return identity_of(len(self), self.classes, places, files, *map(np.concatenate, columns))

    def __getitem__(self, index: int) -> Record:
        image = self._elements[index][1]
        pixels = decode_image((self.path / image.file).read_bytes(), self.channels)
        if image.corner is not None:
            left, top, right, bottom = image.corner
            pixels = pixels[top:bottom, left:right]
        if image.size is not None and pixels.shape[:2] != image.size:
            raise UnreadableError(
                f"{image.file!r} has {pixels.shape[0]}x{pixels.shape[1]} pixels where its "
                f"annotation has {image.size[0]}x{image.size[1]}"
            )
        return {"image": pixels, "name": image.file, **box_fields(image)}

    def truth(self, pictures: Iterable[int] | None = None, *, heed_ignored: bool = False) -> Truth:
        """The objects of whole pictures, for `vadapt.metrics.detection`.

        Args:
            pictures: their numbers (those of elements, unless these are tiles); by default all.
            heed_ignored: objects said to be ignored are; else crowds alone are, as in pycocotools.
        """
        return make_truth(self._numbered(pictures), heed_ignored)

    def regions(self, pictures: Iterable[int] | None = None) -> Truth:
        """The ignored regions of no class, see `metrics.aerial.without_ignored_regions`."""
        return make_truth(self._numbered(pictures), True, regions=True)

    def _numbered(self, pictures: Iterable[int] | None) -> list[tuple[int, Annotated]]:
        numbers = range(len(self._whole)) if pictures is None else pictures
        return [(number, self._whole[number]) for number in numbers]

    @functools.cached_property
    def pictures(self) -> Int[np.ndarray, " n"]:
        """The number of the whole picture that each element is, or is a tile of."""
        return np.array([picture for picture, _ in self._elements], np.int64)

    def whole(self, found: Found, threshold: float = 0.5) -> Found:
        """Detections in elements as those in whole pictures: see `tiling.merge_tiles`."""
        pictures = self.pictures[found.images]
        corners = [image.corner for image in self.annotated]
        if not any(corners):
            return found._replace(images=pictures)
        merged = [found.rows(slice(0))]
        for picture in np.unique(pictures).tolist():
            tiles = np.unique(found.images[pictures == picture]).tolist()
            mine = [found.rows(np.flatnonzero(found.images == tile)) for tile in tiles]
            places = np.array([corners[tile] or (0, 0, 0, 0) for tile in tiles])
            rows = merge_found(mine, places, threshold)
            merged.append(rows._replace(images=np.full(len(rows.images), picture)))
        return Found(*(np.concatenate(column) for column in zip(*merged, strict=True)))


def merge_found(
    parts: Sequence[Found], corners: Int[np.ndarray, "t 4"], threshold: float = 0.5
) -> Found:
    """Detections in the tiles of a picture as those in the picture: see `tiling.merge_tiles`."""
    boxes, kept = merge_tiles(
        [part.boxes_xyxy for part in parts], [part.scores for part in parts], corners, threshold
    )
    together = Found(*(np.concatenate(column)[kept] for column in zip(*parts, strict=True)))
    return together._replace(boxes_xyxy=boxes)


def _taken(layout: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options that are not empty, all of which the reader of a layout must take."""
    given = {name: value for name, value in options.items() if value}
    known = accepted(LAYOUTS[layout])
    for name in given:
        if name not in known:
            raise ConfigError(f"the layout {layout!r} takes no {name!r}; {nearest(name, known)}")
    return given


def _parts(
    image: Annotated, tile: Sequence[int], overlap: Sequence[int], keep: KeepRule
) -> list[Annotated]:
    """An image, or its tiles."""
    if not tile:
        return [image]
    if image.corner is not None:
        raise ConfigError(f"{image.file!r} comes in tiles already: leave config.data.tile empty")
    if image.size is None:  # what cannot be read says so when it is
        return [image]
    tiles = tile_corners(image.size, (tile[0], tile[1]), (overlap[0], overlap[1]))
    return [_tile(image, corner, keep) for corner in tiles.tolist()]


def _tile(image: Annotated, corner: Sequence[int], keep: KeepRule) -> Annotated:
    left, top, right, bottom = corner
    ignored = image.ignored | image.crowds
    boxes, places = boxes_in_tile(image.boxes_xyxy, corner, keep, ignored)
    part = image.rows(places)
    sides = part.boxes_xyxy[:, 2:] - part.boxes_xyxy[:, :2]
    share = (boxes[:, 2:] - boxes[:, :2]).prod(1) / sides.prod(1)
    return part._replace(
        size=(bottom - top, right - left),
        boxes_xyxy=boxes,
        areas=part.areas * share,
        corner=(left, top, right, bottom),
    )


def _is_to_learn_from(image: Annotated) -> bool:
    large = image.size is None or min(image.size) >= _MIN_SIDE
    return large and bool((image.classes >= 0).any())


def box_fields(image: Annotated) -> Record:
    """The fields of a record that say what is in an image."""
    return {
        "boxes_xyxy": image.boxes_xyxy.astype(np.float32),
        "box_classes": image.classes.astype(np.int32),
        "box_crowds": image.crowds,
        "box_ignored": image.ignored | image.crowds,
    }


def make_truth(
    images: Sequence[tuple[int, Annotated]], heed_ignored: bool, *, regions: bool = False
) -> Truth:
    """Objects of numbered images in one table, or the regions of no class, as if of class 0."""
    chosen = [image.rows((image.classes < 0) == regions) for _, image in images]
    columns = ("classes", "boxes_xyxy", "areas", "crowds", "ignored")
    classes, boxes, areas, crowds, ignored = (
        np.concatenate([getattr(image, name) for image in (NO_OBJECTS, *chosen)])
        for name in columns
    )
    numbers = np.array([number for number, _ in images], np.int64)
    counts = np.array([len(image.classes) for image in chosen], np.int64)
    flags = ignored if heed_ignored else np.zeros_like(ignored)
    return Truth(np.repeat(numbers, counts), classes.clip(0), boxes, areas, crowds, flags)


class TfdsBoxes(Tfds):
    """A data set of TFDS with the fields of boxes; see `datasets/` for some.

    Its classes stand in its metadata, under "classes".
    """

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; DataError if the data set has none."""
        names = (self.metadata or {}).get("classes")
        if not names:
            raise DataError(f"{self.title} names no classes in its metadata")
        check_names(names, "classes", f"the metadata of {self.title}")
        return tuple(names)

    @property
    def palette(self) -> np.ndarray:
        """A color a class, to draw boxes, uint8 [k, 3]."""
        return class_colours(max(len(self.classes), 2))

    @property
    def pictures(self) -> Int[np.ndarray, " n"]:
        """The number of the picture that each element is."""
        return np.arange(len(self))

    def whole(self, found: Found, threshold: float = 0.5) -> Found:
        """Detections as they are: every element is a whole picture."""
        return found

    def truth(self, pictures: Iterable[int] | None = None, *, heed_ignored: bool = False) -> Truth:
        """See `BoxedImages.truth`; one pass that decodes no image."""
        return make_truth(self._numbered(pictures), heed_ignored)

    def regions(self, pictures: Iterable[int] | None = None) -> Truth:
        """See `BoxedImages.regions`."""
        return make_truth(self._numbered(pictures), True, regions=True)

    def _numbered(self, pictures: Iterable[int] | None) -> list[tuple[int, Annotated]]:
        found = []
        for number in range(len(self)) if pictures is None else pictures:
            row = self._records[number]
            boxes = row["boxes_xyxy"].astype(np.float64)
            flags = row["box_crowds"], row["box_ignored"] & ~row["box_crowds"]
            areas = row["box_areas"].astype(np.float64)
            image = Annotated("", None, boxes, row["box_classes"], areas, *flags)
            found.append((number, image))
        return found
