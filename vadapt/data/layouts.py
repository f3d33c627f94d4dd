"""Layouts of segmentation data sets, and what their masks mean: one entry per set.

`read_layout` reads such an entry from a data set's own `dataset.yaml`; `LAYOUTS` holds those of
published sets as their downloads unpack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vadapt.data.label_maps import (
    ADE20K,
    CITYSCAPES,
    CITYSCAPES_IDS,
    CITYSCAPES_PALETTE,
    IGNORE,
    MFNET,
    SODA,
    SYNTHIA_IDS,
    UNKNOWN,
    mapillary_ids,
)
from vadapt.errors import DataError, nearest

YAML = "dataset.yaml"  # in the root of a data set
Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where images and masks lie, and what the values of the masks mean.

    Attributes:
        classes: names by train id; empty if not known.
        images: pattern of the image files from the root. Its one * is a sample's name, with the
            folders in it; {split} is a folder of the split. Ends with the * if any suffix will do.
        masks: likewise of the masks.
        splits: name -> folder, folders, or a .txt file that lists the samples' names.
        remap: raw id -> train id (255: ignored); None takes ids as they are.
        rest: the train id of raw ids that `remap` lacks; by default those are errors.
        ignore: raw ids, and colours, that become 255.
        palette: the classes' colours, 0 to 255: to draw them, and to read masks of colours.
        channel: which channel of a mask of colours holds the ids, if one does.
    """

    classes: tuple[str, ...] = ()
    images: str = "images/{split}/*"
    masks: str = "masks/{split}/*"
    splits: Mapping[str, str | tuple[str, ...]] = dataclasses.field(default_factory=dict)
    remap: Mapping[int, int] | None = None
    rest: int = UNKNOWN
    ignore: tuple[int | Colour, ...] = (IGNORE,)
    palette: tuple[Colour, ...] = ()
    channel: int | None = None

    def __post_init__(self) -> None:
        for pattern in (self.images, self.masks):
            if pattern.count("*") != 1 or "*" not in pattern.rpartition("/")[2]:
                raise DataError(f"pattern {pattern!r}: its file name must have one *, as in data/*")
        if len(self.classes) > IGNORE:
            raise DataError(f"{len(self.classes)} classes; labels of 8 bits have 255 at most")
        if self.palette and self.classes and len(self.palette) != len(self.classes):
            raise DataError(
                f"{len(self.palette)} colours in the palette for {len(self.classes)} classes"
            )


def read_layout(path: Path) -> Layout:
    """The layout that a YAML file describes; the default one if there is no such file.

    Raises:
        DataError: the file is no YAML, or an entry is unknown or not as `Layout` has it.
    """
    if not path.is_file():
        return Layout()
    import yaml

    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(entries, dict):
            raise TypeError("expected lines of `name: value`")
        return Layout(**{name: _entry(name, value) for name, value in _checked(entries).items()})
    except DataError as error:
        raise DataError(f"{str(path)!r}: {error}") from error
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise DataError(
            f"cannot read {str(path)!r}: {error}; see vadapt.data.segmentation"
        ) from error


def _checked(entries: dict[str, Any]) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(Layout)} - {"rest"}
    for name in entries:
        if name not in known:
            raise DataError(f"unknown entry {name!r}; {nearest(str(name), known)}")
    remap = entries.get("remap") or {}
    if not isinstance(remap, dict):
        raise TypeError("remap must map raw ids to train ids, as in {7: 0, 8: 1, rest: ignore}")
    if "rest" in remap:
        entries = entries | {"rest": remap["rest"]}
        entries["remap"] = {raw: train for raw, train in remap.items() if raw != "rest"}
    return entries


def _entry(name: str, value: Any) -> Any:
    """A value of the YAML file as `Layout` takes it."""
    if name == "classes":
        names = [f"class {number}" for number in range(value)] if isinstance(value, int) else value
        return tuple(map(str, names))
    if name == "splits":
        return {
            str(split): tuple(map(str, folders)) if isinstance(folders, list) else str(folders)
            for split, folders in value.items()
        }
    if name == "remap":
        return {int(raw): _train_id(train) for raw, train in value.items()}
    if name == "rest":
        return _train_id(value)
    if name == "palette":
        return tuple(map(_colour, value))
    if name == "ignore":
        values = value if isinstance(value, list) else [value]
        return tuple(_colour(one) if isinstance(one, list) else int(one) for one in values)
    return int(value) if name == "channel" else str(value)


def _train_id(value: Any) -> int:
    return IGNORE if value == "ignore" else int(value)


def _colour(value: Any) -> Colour:
    red, green, blue = map(int, value)
    return red, green, blue


def _cityscapes_like(images: str, masks: str, **entries: Any) -> Layout:
    return Layout(CITYSCAPES, images, masks, palette=CITYSCAPES_PALETTE, **entries)


_TRAIN_VAL_TEST = {"train": "train", "val": "val", "test": "test"}
_RAW = {"remap": CITYSCAPES_IDS, "rest": IGNORE}
_CONDITIONS = ("fog", "night", "rain", "snow")
_ACDC_SPLITS = {
    split: tuple(f"{condition}/{split}" for condition in _CONDITIONS) for split in _TRAIN_VAL_TEST
} | {f"{split}_{c}": f"{c}/{split}" for split in _TRAIN_VAL_TEST for c in _CONDITIONS}

# By name: the sets as they unpack, with raw ids where the download has them; *_train_ids are those
# that a conversion has written.
LAYOUTS: dict[str, Layout] = {
    "cityscapes": _cityscapes_like(
        "leftImg8bit/{split}/*_leftImg8bit.png",
        "gtFine/{split}/*_gtFine_labelIds.png",
        splits=_TRAIN_VAL_TEST,
        **_RAW,
    ),
    "cityscapes_train_ids": _cityscapes_like(
        "leftImg8bit/{split}/*_leftImg8bit.png",
        "gtFine/{split}/*_gtFine_labelTrainIds.png",
        splits=_TRAIN_VAL_TEST,
    ),
    "gta": _cityscapes_like("images/*.png", "labels/*.png", **_RAW),
    "gta_train_ids": _cityscapes_like("images/*.png", "labels/*_labelTrainIds.png"),
    # The ids lie in the first channel of 16-bit RGB, instances in the second.
    "synthia": _cityscapes_like(
        "RGB/*.png", "GT/LABELS/*.png", remap=SYNTHIA_IDS, rest=IGNORE, channel=0
    ),
    "urbansyn": _cityscapes_like("rgb/rgb_*.png", "ss/ss_*.png", ignore=(19, IGNORE)),
    "bdd100k": _cityscapes_like(
        "images/10k/{split}/*.jpg",
        "labels/sem_seg/masks/{split}/*.png",
        splits=_TRAIN_VAL_TEST,
    ),
    "mapillary": _cityscapes_like(
        "{split}/images/*.jpg",
        "{split}/labels/*.png",
        splits={"train": "training", "val": "validation", "test": "testing"},
        remap=mapillary_ids(),
    ),
    # Halved beforehand, as Rein's evaluation has it.
    "mapillary_half": _cityscapes_like(
        "half/{split}_img/*.jpg", "half/{split}_label/*.png", splits={"val": "val"}
    ),
    "acdc": _cityscapes_like(
        "rgb_anon/{split}/*_rgb_anon.png",
        "gt/{split}/*_gt_labelTrainIds.png",
        splits=_ACDC_SPLITS,
    ),
    "ade20k": Layout(
        ADE20K,
        "images/{split}/*.jpg",
        "annotations/{split}/*.png",
        splits={"train": "training", "val": "validation"},
        remap={0: IGNORE} | {number + 1: number for number in range(len(ADE20K))},
    ),
    "soda": Layout(
        SODA,
        "InfraredSemanticLabel/JPEGImages/*.jpg",
        "InfraredSemanticLabel/SegmentationClassPNG/*.png",
        splits={
            split: f"InfraredSemanticLabel/{split}_infrared.txt" for split in ("train", "test")
        },
    ),
    "mfnet": Layout(
        MFNET,
        "thermal_imgs/*.png",
        "labels/*.png",
        splits={split: f"{split}.txt" for split in ("train", "val", "val_test", "test")},
    ),
}
