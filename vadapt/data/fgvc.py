"""Fine-grained classification (FGVC) with the files of labels that VPT published."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vadapt.data.label_files import Labels, check_files, one_label_each
from vadapt.data.subsets import in_drawn_order
from vadapt.data.untrusted import first_of, read_json
from vadapt.errors import DataError, nearest

SPLITS = ("train", "val", "trainval", "test", "all")
HELD_OUT = 0.1  # of the training images, where nothing says which validate
_MOST_MIB = 256  # NABirds, the largest, has 49,000 images
# Number of classes, by the name of the layout.
CLASSES = {
    "cub200": 200,
    "nabirds": 555,
    "oxford_flowers": 102,
    "stanford_dogs": 120,
    "stanford_cars": 196,
}
_FOLDERS = ("", "images/", "Images/")  # from which paths lead, by the data set


def read_fgvc(root: Path, split: str, num_classes: int = 0, *, split_seed: int = 0) -> Labels:
    """`train.json`, `val.json` and `test.json`, each a map {path of an image: class}.

    Paths lead from the root, or from `images` or `Images` in it. Classes, numbers or names, are
    those of the training and validation images in their order. Without a `val.json` a tenth of the
    training images validates.

    Args:
        split: one of `SPLITS`; "trainval" is both, "all" these and the test images.
        num_classes: that there must be; 0 takes any number.
        split_seed: draws that tenth. It depends on the images' paths, not on their order.

    Raises:
        DataError: a file is missing or damaged, has other classes, or an image is missing or named
            twice.
    """
    if split not in SPLITS:
        raise DataError(f"FGVC has no split {split!r}; {nearest(split, SPLITS)}")
    learned, own = _read(root / "train.json"), root / "val.json"
    validated = _read(own) if own.is_file() else {}
    if twice := sorted(learned.keys() & validated.keys()):
        raise DataError(f"{str(own)!r} and train.json both name {first_of(twice)}; leave one")
    both = {**learned, **validated}
    classes = _classes(both, num_classes, repr(str(root / "train.json")))
    if not validated:
        drawn = in_drawn_order(learned, split_seed)
        held = {*drawn[: round(HELD_OUT * len(drawn))]}
        validated = {file: name for file, name in both.items() if file in held}
        learned = {file: name for file, name in both.items() if file not in held}
    listed = own if split == "val" and own.is_file() else root / "train.json"
    chosen = {"train": learned, "val": validated, "trainval": both}.get(split)
    if chosen is None:
        listed = root / "test.json"
        chosen = _read(listed)
        if split == "all":
            if twice := sorted(both.keys() & chosen.keys()):
                raise DataError(
                    f"{str(listed)!r} names {first_of(twice)}, which is trained on; leave one"
                )
            chosen = {**both, **chosen}
    places = {name: number for number, name in enumerate(classes)}
    if unknown := [file for file in chosen if chosen[file] not in places]:
        raise DataError(
            f"{str(listed)!r}: {unknown[0]!r} is of class {chosen[unknown[0]]!r}, which no image "
            "of train.json has"
        )
    first = next(iter(chosen), "")
    folder = next((path for path in _FOLDERS if os.path.isfile(root / path / first)), "")
    files = [folder + file for file in chosen]
    check_files(root, files, str(listed))
    numbers = [places[name] for name in chosen.values()]
    return one_label_each(files, numbers, tuple(map(str, classes)), repr(str(listed)))


def _read(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise DataError(f"no {str(file)!r}: a map of paths of images to classes, as VPT published")
    content = read_json(file, _MOST_MIB)
    if not isinstance(content, dict) or not content:
        raise DataError(f"{str(file)!r} must be a map of paths of images to classes")
    for path, name in content.items():
        if isinstance(name, bool) or not isinstance(name, int | str):
            raise DataError(f"{str(file)!r}: the class of {path!r} is {name!r}; no number or name")
    return content


def _classes(images: Mapping[str, Any], num_classes: int, where: str) -> list[Any]:
    """The classes of all images: numbers by value, names by the alphabet."""
    found = {*images.values()}
    if len({*map(type, found)}) > 1:
        raise DataError(f"{where} has classes by number and by name; write all in one way")
    if num_classes and len(found) != num_classes:
        raise DataError(
            f"{where} has {len(found)} classes, and this data set has {num_classes}: is it "
            "another? layout='fgvc' takes any number"
        )
    return sorted(found)
