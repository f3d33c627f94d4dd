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
from vadapt.data.untrusted import (
    check_inside,
    check_names,
    doubled,
    first_of,
    parse_yaml,
    read_bytes,
)
from vadapt.errors import DataError, nearest

YAML = "dataset.yaml"  # in the root of a data set
_MOST_MIB = 1  # of it
_DOCS = "docs/segmentation_data.md"
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
        check_inside((self.images, self.masks), "a pattern")
        for split, folders in self.splits.items():
            places = [folders] if isinstance(folders, str) else folders
            check_inside(places, f"split {split!r}")
        for what, number in (("classes", len(self.classes)), ("colours", len(self.palette))):
            if number > IGNORE:
                raise DataError(f"{number} {what}; labels of 8 bits have 255 at most")
        check_names(self.classes, "classes", "`classes`")
        if self.palette and self.classes and len(self.palette) != len(self.classes):
            raise DataError(
                f"{len(self.palette)} colours in the palette for {len(self.classes)} classes"
            )
        self._check_colours()
        if self.channel not in (None, 0, 1, 2):
            raise DataError(f"channel {self.channel}; write 0, 1 or 2: red, green or blue")

    def _check_colours(self) -> None:
        ignored = [one for one in self.ignore if isinstance(one, tuple)]
        # Masks of colours may have 16 bits, but what is drawn has 8.
        for colours, highest in ((self.palette, 255), (ignored, 2**16 - 1)):
            for colour in colours:
                if not 0 <= min(colour) <= max(colour) <= highest:
                    raise DataError(
                        f"colour {list(colour)}; write [red, green, blue], each from 0 to {highest}"
                    )
        if twice := doubled(self.palette):
            raise DataError(
                f"colours of two classes in the palette: {first_of(twice)}; a mask of colours "
                "would know one of them"
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
        entries = parse_yaml(read_bytes(path, _MOST_MIB).decode("utf-8-sig"))
        entries = {} if entries is None else entries
        if not isinstance(entries, dict):
            raise TypeError("expected lines of `name: value`")
        return Layout(**{name: _entry(name, value) for name, value in _checked(entries).items()})
    except DataError as error:
        raise DataError(f"{str(path)!r}: {error}") from error
    except (yaml.YAMLError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())  # YAML's own fill many lines
        raise DataError(f"cannot read {str(path)!r}: {reason}; see {_DOCS}") from error


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
    """A value of the YAML file as `Layout` takes it; TypeError or DataError says what to write."""
    if name == "classes":
        return _classes(value)
    if name == "splits":
        example = "splits: {train: train, val: [city_a, city_b], test: test.txt}"
        if not isinstance(value, dict):
            raise TypeError(f"splits is {value!r}; write folders or lists by name, as in {example}")
        return {
            _text(split, name): tuple(_text(folder, name) for folder in folders)
            if isinstance(folders, list)
            else _text(folders, name)
            for split, folders in value.items()
        }
    if name == "remap":
        ids = [(_whole(raw, name), _train_id(train)) for raw, train in (value or {}).items()]
        if twice := doubled(raw for raw, _ in ids):
            raise DataError(f"remap says {first_of(twice)} twice; leave one")
        return dict(ids)
    if name == "rest":
        return _train_id(value)
    if name == "palette":
        return tuple(map(_colour, _list(value, "palette: [[255, 0, 0], [0, 0, 255]]")))
    if name == "ignore":
        values = value if isinstance(value, list) else [value]
        return tuple(_colour(one) if isinstance(one, list) else _whole(one, name) for one in values)
    return _whole(value, name) if name == "channel" else _text(value, name)


def _classes(value: Any) -> tuple[str, ...]:
    """Names of classes from a list of them, or from how many there are."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 < value <= IGNORE:
            raise DataError(
                f"classes: {value}; write how many there are, from 1 to {IGNORE} at most"
            )
        return tuple(f"class {number}" for number in range(value))
    return tuple(_text(name, "classes") for name in _list(value, "classes: [road, person]"))


def _list(value: Any, example: str) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list; write it as in `{example}`")
    return value


def _text(value: Any, name: str) -> str:
    """A name; not what YAML takes for something else, as it takes `no` for false."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"{value!r} in {name} is no text; write a name, in quotes if it must be so")
    return str(value)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"{value!r} in {name} is no whole number; write one")
    return int(value)


def _train_id(value: Any) -> int:
    return IGNORE if value == "ignore" else _whole(value, "remap")


def _colour(value: Any) -> Colour:
    if not isinstance(value, list) or len(value) != 3:
        raise TypeError(f"{value!r} is no colour; write [red, green, blue], each from 0 to 255")
    red, green, blue = (_whole(one, "a colour") for one in value)
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
