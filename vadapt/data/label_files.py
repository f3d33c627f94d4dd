"""Which labels the images of a data set have, from the files that say so: COCO, VOC, one table.

Each reader gives `Labels`; no image is opened. Nothing is unpickled, XML that declares a document
type (by which entities come) is refused, and so is what is named twice where one would win.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float32, Int8

from vadapt.data.untrusted import (
    check_cells,
    check_inside,
    check_names,
    doubled,
    first_of,
    read_bytes,
    read_json,
    read_lines,
)
from vadapt.errors import DataError, nearest

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
TABLE = "labels.csv"
_MOST_MIB = 16  # of an annotation of one image
_MOST_MIB_TABLE = 1024  # of a table of all images
_MOST_MIB_COCO = 4096  # Objects365's, the largest known, has some 3 GiB
_COLUMNS = ("file", "split", "labels")


class Labels(NamedTuple):
    """The images of one split, and what is known of them.

    Attributes:
        files: paths from the root.
        targets: 1 for a label that is there, 0 absent, -1 in doubt.
        classes: the labels' names.
        areas: pixels of each label's objects, where the data set says so.
    """

    files: list[str]
    targets: Int8[np.ndarray, "n l"]
    classes: tuple[str, ...]
    areas: Float32[np.ndarray, "n l"] | None = None


def read_coco(root: Path, split: str, year: str = "2014") -> Labels:
    """COCO's `annotations/instances_SPLITYEAR.json` and images in `SPLITYEAR/`.

    A label is there if any annotation has it, crowds included; images without one stay. Classes by
    ascending category id. Areas are sums over a label's annotations.

    Raises:
        DataError: a file is missing or damaged, annotates what it does not list, or has two of one
            id, name or file.
    """
    file = root / "annotations" / f"instances_{split}{year}.json"
    if not file.is_file():
        known = sorted(path.name for path in (root / "annotations").glob("instances_*.json"))
        raise DataError(f"no {str(file)!r}; there are {known or 'no instances_*.json'}")
    content = read_json(file, _MOST_MIB_COCO)
    try:
        labels = _coco_labels(content, f"{split}{year}", repr(str(file)))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{str(file)!r} is not as COCO has it: no {error} where an image, a category or an "
            "annotation needs it"
        ) from error
    check_files(root, labels.files, str(file))
    return labels


def _coco_labels(content: Any, folder: str, where: str) -> Labels:
    """Labels from the values of a COCO file; KeyError and the like where something lacks."""
    images, annotations = content["images"], content["annotations"]
    categories = sorted((c["id"], str(c["name"])) for c in content["categories"])
    ids = {
        "categories": [number for number, _ in categories],
        "images": [image["id"] for image in images],
        # Labels do not need them, and some files have none.
        "annotations": [a["id"] for a in annotations if "id" in a],
    }
    for what, numbers in ids.items():
        if twice := doubled(numbers):
            raise DataError(
                f"{where}: {what} of one id, {first_of(twice)}; one would take what is the "
                "other's: give each an id of its own (files that are merged need new ids)"
            )
    classes = tuple(name for _, name in categories)
    check_names(classes, "categories", where)
    check_cells(len(images), len(classes), where)
    columns = {number: column for column, number in enumerate(ids["categories"])}
    rows = {number: row for row, number in enumerate(ids["images"])}
    targets = np.zeros((len(images), len(columns)), np.int8)
    areas = np.zeros(targets.shape, np.float32)
    for annotation in annotations:
        place = rows[annotation["image_id"]], columns[annotation["category_id"]]
        area = annotation["area"]
        if not 0 <= area < np.inf:
            raise DataError(
                f"{where}: an annotation's area is {area}; a number of pixels is needed"
            )
        targets[place] = 1
        areas[place] += area
    files = [f"{folder}/{image['file_name']}" for image in images]
    return Labels(files, targets, classes, areas)


def read_voc(root: Path, split: str) -> Labels:
    """VOC: `ImageSets/Main/SPLIT.txt`, `Annotations/*.xml`, `JPEGImages/*.jpg`.

    A label is there if any object of it is not difficult, and in doubt if all are.

    Args:
        root: of one year, or a folder with `VOC2007` or `VOCdevkit/VOC2007`.

    Raises:
        DataError: a file is missing or damaged, or names a class that VOC has not.
    """
    year = voc_root(root)
    prefix = "" if year == root else f"{year.relative_to(root).as_posix()}/"
    listed = year / "ImageSets" / "Main" / f"{split}.txt"
    if not listed.is_file():
        known = [path.stem for path in listed.parent.glob("*.txt") if "_" not in path.stem]
        raise DataError(f"no split {split!r} in {str(listed.parent)!r}; {nearest(split, known)}")
    names = [name for line in read_lines(listed) for name in line.split()]
    check_inside(names, repr(str(listed)))
    targets = np.zeros((len(names), len(VOC_CLASSES)), np.int8)
    for row, name in zip(targets, names, strict=True):
        for column, difficult in voc_objects(year / "Annotations" / f"{name}.xml"):
            row[column] = 1 if not difficult or row[column] == 1 else -1
    files = [f"{prefix}JPEGImages/{name}.jpg" for name in names]
    check_files(root, files, str(listed))
    return Labels(files, targets, VOC_CLASSES)


def voc_root(root: Path) -> Path:
    """The folder of one year in an unpacked VOC.

    Raises:
        DataError: there is none.
    """
    for path in (root, root / "VOC2007", root / "VOCdevkit" / "VOC2007"):
        if (path / "JPEGImages").is_dir() and (path / "ImageSets" / "Main").is_dir():
            return path
    raise DataError(f"no JPEGImages, Annotations and ImageSets/Main in {str(root)!r}")


def voc_objects(file: Path) -> list[tuple[int, bool]]:
    """Class and difficulty of every object that an annotation of VOC names.

    Raises:
        DataError: the file is missing, no XML, or has a class that VOC has not.
    """
    found = []
    for thing in read_xml(file).findall("object"):
        name = (thing.findtext("name") or "").strip()
        if name not in VOC_CLASSES:
            raise DataError(f"{str(file)!r}: unknown class {name!r}; {nearest(name, VOC_CLASSES)}")
        found.append((VOC_CLASSES.index(name), (thing.findtext("difficult") or "0").strip() == "1"))
    return found


def read_xml(file: Path) -> ElementTree.Element:
    """The root of an annotation of VOC.

    Raises:
        DataError: the file is missing, no XML, or declares a document type.
    """
    parser = ElementTree.XMLParser(target=_NoDoctype())
    try:
        parser.feed(read_bytes(file, _MOST_MIB))
        return parser.close()
    except FileNotFoundError as error:
        raise DataError(f"no annotation {str(file)!r} of a listed image") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{str(file)!r} is no XML of VOC: {error}") from error


def read_table(root: Path, split: str) -> Labels:
    """`labels.csv` in the root: a line for each image, after one that names the columns.

    `file` is a path from the root. Then either `labels`, names with semicolons between them, or one
    column for each class, with 1, 0 (or nothing) and -1 for doubt. A column `split` names each
    image's split; without it the split is the file's first folder.

    Raises:
        DataError: the table is missing or not so, or an image is missing, or an image or a column
            is named twice.
    """
    table = root / TABLE
    if not table.is_file():
        raise DataError(f"no {TABLE} in {str(root)!r}; see docs/multilabel.md for what it holds")
    try:
        text = read_bytes(table, _MOST_MIB_TABLE).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        lines = list(reader)
        header = [name.strip() for name in reader.fieldnames or ()]
        columns = [name for name in reader.fieldnames or () if name not in _COLUMNS]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {str(table)!r}: {error}") from error
    check_names(header, "columns", repr(str(table)))
    needed = {"file", *(["labels"] if "labels" in header else columns[:1])}
    if not lines or not needed <= set(lines[0]) or len(needed) < 2:
        raise DataError(
            f"{str(table)!r} must begin with a line `file,labels` or `file,CLASS,CLASS,...` and "
            "go on with a line for each image"
        )
    for number, line in enumerate(lines, 2):
        if None in line or None in line.values():
            raise DataError(f"{str(table)!r}, line {number}: not as many fields as the first line")
    if "labels" in header:
        named = [_names(line["labels"]) for line in lines]
        classes = tuple(sorted(set().union(*named)))
        places = {name: column for column, name in enumerate(classes)}
        check_cells(len(lines), len(classes), repr(str(table)))
        targets = np.zeros((len(lines), len(classes)), np.int8)
        for row, names in zip(targets, named, strict=True):
            row[[places[name] for name in names]] = 1
    else:
        classes = tuple(columns)
        targets = np.array([_numbers(table, i, line, columns) for i, line in enumerate(lines, 2)])
    chosen = _in_split(table, lines, split)
    files = [lines[row]["file"] for row in chosen]
    check_files(root, files, str(table), [row + 2 for row in chosen])
    return Labels(files, targets[chosen], classes)


class _NoDoctype(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise ValueError(f"it declares the document type {name!r}, which is refused")


def _names(field: str) -> set[str]:
    return {name.strip() for name in field.split(";") if name.strip()}


def _numbers(
    table: Path, number: int, line: Mapping[str, str], columns: Sequence[str]
) -> Int8[np.ndarray, " l"]:
    known = {"": 0, "0": 0, "1": 1, "-1": -1}
    for name in columns:
        if line[name].strip() not in known:
            raise DataError(
                f"{str(table)!r}, line {number}: {name} is {line[name]!r}; expected 1, 0 or -1"
            )
    return np.array([known[line[name].strip()] for name in columns], np.int8)


def _in_split(table: Path, lines: Sequence[Mapping[str, str]], split: str) -> list[int]:
    """Numbers of the lines that belong to a split; "" takes all."""
    if not split:
        return list(range(len(lines)))
    own = "split" in lines[0]
    splits = [line["split"] if own else line["file"].partition("/")[0] for line in lines]
    chosen = [row for row, name in enumerate(splits) if name == split]
    if not chosen:
        raise DataError(f"{str(table)!r} has no split {split!r}; {nearest(split, set(splits))}")
    return chosen


def one_label_each(
    files: list[str], numbers: Sequence[int], classes: tuple[str, ...], where: str
) -> Labels:
    """Images that have one label each, given by its number; `where` names what says so."""
    check_cells(len(files), len(classes), where)
    targets = np.zeros((len(files), len(classes)), np.int8)
    targets[np.arange(len(files)), np.asarray(numbers, np.int64)] = 1
    return Labels(files, targets, classes)


def check_files(root: Path, files: Sequence[str], table: str, numbers: Sequence[int] = ()) -> None:
    """Raises DataError if a file is not there, elsewhere or named twice.

    Args:
        table: what names them.
        numbers: the line of each in it, which errors then tell.
    """
    lines = [f", line {number}" for number in numbers] or [""] * len(files)
    for line, file in zip(lines, files, strict=True):
        check_inside([file], repr(table) + line)
    plain = [*map(posixpath.normpath, files)]
    if twice := doubled(plain):
        again = len(plain) - 1 - plain[::-1].index(twice[0])
        raise DataError(
            f"{table!r}{lines[again]} names images twice: {first_of(twice)}; each image has one "
            "line"
        )
    missing = missing_files(root, files)
    if missing:
        what = f"{len(missing)} images are not in {str(root)!r}: " + first_of(
            [files[place] for place in missing]
        )
        raise DataError(f"{table!r}{lines[missing[0]]}: {what}" if numbers else what)


def missing_files(root: Path, files: Sequence[str]) -> list[int]:
    """The places of files that are not there; a folder is listed once."""
    there: dict[str, set[str]] = {}
    missing = []
    for place, file in enumerate(files):
        folder, _, name = file.rpartition("/")
        if folder not in there:
            path = root / folder
            there[folder] = {p.name for p in path.iterdir()} if path.is_dir() else set()
        if name not in there[folder]:
            missing.append(place)
    return missing
