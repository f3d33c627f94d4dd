"""Which objects the images of a data set have, from YOLO's text and Pascal VOC's XML.

Malformed files raise, with the place in them; what may be handled otherwise is noted in the draft.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from vadapt.data.annotated import Draft
from vadapt.data.label_files import VOC_CLASSES, read_xml
from vadapt.data.sources import IMAGE_SUFFIXES, find_files
from vadapt.data.untrusted import (
    check_inside,
    numbered_lines,
    parse_yaml,
    read_bytes,
    read_lines,
)
from vadapt.errors import DataError, nearest

_MOST_MIB_YAML = 1


def read_yolo(root: Path, split: str, *, annotations: str = "") -> Draft:
    """YOLO: a file `labels/NAME.txt` for `images/NAME.jpg`, lines "class x y width height".

    Numbers are shares of the image, x and y of the box's center; a line of more numbers is a
    polygon, and counts with the box around it. `data.yaml` names the classes and where each split's
    images lie (a folder or a list of files); without it `classes.txt` has a class a line, and
    images lie in `images/SPLIT`. An image without a file has no objects.

    Args:
        annotations: another name of `data.yaml`.

    Raises:
        DataError: nothing names the classes; or a line is not so, says which.
    """
    listed = root / (annotations or "data.yaml")
    if listed.is_file():
        classes, files = _from_yaml(root, listed, split)
    elif annotations:
        raise DataError(f"no {str(listed)!r}")
    else:
        listed = root / "classes.txt"
        if not listed.is_file():
            raise DataError(f"neither data.yaml nor classes.txt in {str(root)!r}: name the classes")
        classes, files = read_lines(listed), _images_in(root, f"images/{split}".rstrip("/"))
    draft = Draft(root, classes, repr(str(listed)))
    for file in files:
        draft.image(file)
    draft.read_sizes()
    for place, file in enumerate(files):
        _add_yolo_lines(draft, place, root / _labels_of(file))
    return draft


def _from_yaml(root: Path, listed: Path, split: str) -> tuple[list[str], list[str]]:
    where = repr(str(listed))
    try:
        content = parse_yaml(read_bytes(listed, _MOST_MIB_YAML).decode("utf-8-sig"))
    except Exception as error:
        raise DataError(f"{where} is no YAML: {error}") from error
    content = content if isinstance(content, dict) else {}
    names = content.get("names")
    if isinstance(names, dict):
        names = [names.get(number) for number in range(len(names))]
    names = names if isinstance(names, list) else []
    classes = [name for name in names if isinstance(name, str)]
    if not classes or len(classes) < len(names):
        raise DataError(f"{where}: 'names' must be the classes' names, [a, b] or {{0: a, 1: b}}")
    lists = content.get(split)
    if lists is None:
        splits = [name for name in ("train", "val", "test") if name in content]
        raise DataError(f"{where} has no split {split!r}; {nearest(split, splits)}")
    files: list[str] = []
    for name in lists if isinstance(lists, list) else [lists]:
        # Exports write "../train/images", which leads from another folder than the file's.
        name = str(name).removeprefix("../").removeprefix("./")
        check_inside([name], where)
        if name.endswith(".txt"):
            lines = [line.removeprefix("./") for line in read_lines(root / name)]
            check_inside(lines, repr(str(root / name)))
            files += lines
        else:
            files += _images_in(root, name)
    return classes, files


def _images_in(root: Path, folder: str) -> list[str]:
    if not (root / folder).is_dir():
        raise DataError(f"no folder {str(root / folder)!r} of images")
    return [f"{folder}/{name}" for name in find_files(root / folder, IMAGE_SUFFIXES)]


def _labels_of(file: str) -> str:
    """The file of labels of an image: in `labels` where that is in the last `images`."""
    before, found, after = f"/{file}".rpartition("/images/")
    path = f"{before}/labels/{after}" if found else f"/{file}"
    return os.path.splitext(path)[0][1:] + ".txt"


def _add_yolo_lines(draft: Draft, place: int, file: Path) -> None:
    size = draft.size(place)
    if size is None or not file.is_file():  # an image that cannot be read says so itself
        return
    for number, line in numbered_lines(file):
        where = f"{str(file)!r}, line {number}"
        try:
            kind, *numbers = line.split()
            column, values = int(kind), [float(text) for text in numbers]
        except ValueError:
            values, column = [], 0
        if len(values) < 4 or len(values) % 2:
            raise DataError(f"{where}: {line!r:.60}; expected: class x y width height")
        if not 0 <= column < len(draft.classes):
            draft.problem("category", f"{where} (class {column} of {len(draft.classes)})")
            continue
        if len(values) == 4:
            x, y, width, height = values
            xs, ys = [x - width / 2, x + width / 2], [y - height / 2, y + height / 2]
        else:
            xs, ys = values[::2], values[1::2]
        corners = min(xs), min(ys), max(xs), max(ys)
        scaled = [share * size[1 - axis % 2] for axis, share in enumerate(corners)]
        draft.box(place, scaled, column, where)


def read_voc(
    root: Path, split: str, *, classes: Sequence[str] = (), images: str = "JPEGImages"
) -> Draft:
    """Pascal VOC: `Annotations/*.xml`, `JPEGImages/*.jpg`, `ImageSets/Main/SPLIT.txt`.

    Corners count from 1, and the last pixel belongs to the box. Difficult objects are ignored.

    Args:
        split: "" takes every annotation.
        classes: names in their order; by default VOC's twenty if no other is there, else all
            names, sorted.
        images: the folder of the images, from the root.

    Raises:
        DataError: a file is missing or not so; says which.
    """
    folder = root / "Annotations"
    if not folder.is_dir():
        raise DataError(f"no folder {str(folder)!r} of annotations")
    names = sorted(path.stem for path in folder.glob("*.xml"))
    if split:
        listed = root / "ImageSets" / "Main" / f"{split}.txt"
        if not listed.is_file():
            known = [path.stem for path in listed.parent.glob("*.txt")]
            raise DataError(
                f"no split {split!r} in {str(listed.parent)!r}; {nearest(split, known)}"
            )
        names = read_lines(listed)
        check_inside(names, repr(str(listed)))
    parsed = [(name, read_xml(folder / f"{name}.xml")) for name in names]
    said = sorted({_text(thing, "name") for _, xml in parsed for thing in xml.findall("object")})
    if not classes:
        classes = VOC_CLASSES if {*said} <= {*VOC_CLASSES} else said
    draft = Draft(root, classes, repr(str(folder)))
    for name, xml in parsed:
        where = repr(str(folder / f"{name}.xml"))
        file = _text(xml, "filename") or f"{name}.jpg"
        if os.path.splitext(file)[0] != name:  # copied annotations name the first one's image
            file = name + (os.path.splitext(file)[1] or ".jpg")
        place = draft.image(f"{images}/{file}" if images else file, where=where)
        if place is not None:
            _add_voc_objects(draft, place, xml, where)
    return draft


def _text(thing: ElementTree.Element, name: str) -> str:
    return (thing.findtext(name) or "").strip()


def _add_voc_objects(draft: Draft, place: int, xml: ElementTree.Element, where: str) -> None:
    for number, thing in enumerate(xml.findall("object")):
        name, said = _text(thing, "name"), f"object {number} of {where}"
        if name not in draft.classes:
            draft.problem("category", f"{said} ({name!r}; {nearest(name, draft.classes)})")
            continue
        try:
            left, top, right, bottom = (
                float(thing.findtext(f"bndbox/{side}") or "")
                for side in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError:
            draft.problem("number", said)
            continue
        ignored = _text(thing, "difficult") == "1"
        column = draft.classes.index(name)
        draft.box(place, (left - 1, top - 1, right, bottom), column, said, ignored=ignored)
