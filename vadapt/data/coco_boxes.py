"""Which objects the images of a data set have, from a file of COCO's form.

Malformed files raise, with the place in them; what may be handled otherwise is noted in the draft.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vadapt.data.annotated import REGION, Draft
from vadapt.data.untrusted import (
    check_inside,
    doubled,
    first_of,
    read_json,
)
from vadapt.errors import DataError

_MOST_MIB_COCO = 4096
_LOOKED_FOR = 16  # images, to find their folder
# Where the annotations of a split lie, if nothing says it, and where its images may begin.
COCO_FILES = (
    "annotations/instances_{split}.json",
    "annotations/{split}.json",
    "{split}/_annotations.coco.json",
    "{split}.json",
)
COCO_FOLDERS = ("", "{split}", "images/{split}", "images", "{split}/images")
_FLAGS = ("ignore", "uncertain")  # of objects that are not to count


def read_coco(
    root: Path,
    split: str,
    *,
    annotations: str = "",
    images: str = "",
    numbers: Mapping[int, int] | None = None,
    classes: Sequence[str] = (),
    dense: bool = True,
) -> Draft:
    """COCO's JSON: `images`, `categories` and `annotations` with "bbox" [x, y, width, height].

    Objects with "iscrowd" are crowds, with "ignore" or "uncertain" ignored. Without an "area" that
    of the box counts. An image with a "corner" [left, top, right, bottom] is that tile of its file.

    Args:
        annotations: the file, from the root; by default the first of `COCO_FILES` that is there.
        images: the folder of the images, from the root; by default the first of `COCO_FOLDERS`
            that has the first images.
        numbers: places of the classes by category id, `REGION` for ignored regions; objects of
            other categories are left out. By default classes go by ascending id.
        classes: their names, with `numbers`.
        dense: False leaves out images with an object "in_dense_image".

    Raises:
        DataError: a file is missing or is not so; says which entry of it.
    """
    file = _first_there(root, split, annotations)
    where = repr(str(file))
    content = read_json(file, _MOST_MIB_COCO)
    if not isinstance(content, dict):
        raise DataError(f"{where} must hold an object with 'images', 'annotations', 'categories'")
    parts = {name: _entries(content, name, where) for name in ("images", "annotations")}
    if numbers is None:
        numbers, classes = _categories(_entries(content, "categories", where), where)
        known = set(numbers)
    else:
        known = None
    draft = Draft(root, classes, where)
    objects = parts["annotations"]
    left_out = set() if dense else {a.get("image_id") for a in objects if a.get("in_dense_image")}
    folder = _folder(root, split, images, parts["images"])
    places = _add_images(draft, parts["images"], folder, left_out, where)
    _add_objects(draft, objects, places, numbers, known, left_out)
    return draft


def _first_there(root: Path, split: str, annotations: str) -> Path:
    names = [annotations] if annotations else [_named(name, split) for name in COCO_FILES]
    check_inside(names, "config.data.annotations")
    found = next((root / name for name in names if (root / name).is_file()), None)
    if found is None:
        raise DataError(
            f"no {' or '.join(map(repr, names))} in {str(root)!r}; give the file's place there "
            "with --config.data.annotations=FILE.json, or another --config.data.split"
        )
    return found


def _named(pattern: str, split: str) -> str:
    return pattern.format(split=split).strip("/")


def _entries(content: dict[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    """The objects of a list in a file of COCO."""
    found = content.get(name)
    if not isinstance(found, list):
        raise DataError(f"{where} has no list {name!r}: is it a file of COCO's form?")
    for number, entry in enumerate(found):
        if not isinstance(entry, dict):
            raise DataError(f"{where}: entry {number} of {name!r} is {entry!r:.60}; no object")
    return found


def _value(entry: dict[str, Any], name: str, kinds: Any, what: str) -> Any:
    value = entry.get(name)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise DataError(f"{what} has {name!r} {value!r:.60}, which is no {_spoken(kinds)}")
    return value


def _spoken(kinds: Any) -> str:
    return {int: "whole number", str: "text", list: "list"}.get(kinds, "number or text")


def _categories(entries: list[dict[str, Any]], where: str) -> tuple[dict[int, int], list[str]]:
    """Places by id, and names, of the categories by ascending id."""
    pairs = sorted(
        (
            _value(entry, "id", int, f"{where}: category {number}"),
            _value(entry, "name", str, f"{where}: category {number}"),
        )
        for number, entry in enumerate(entries)
    )
    if twice := doubled(number for number, _ in pairs):
        raise DataError(
            f"{where}: categories of one id, {first_of(twice)}; give each an id of its own"
        )
    return {number: place for place, (number, _) in enumerate(pairs)}, [name for _, name in pairs]


def _folder(root: Path, split: str, images: str, entries: list[dict[str, Any]]) -> PurePosixPath:
    """The folder from which the names of images lead."""
    folders = [images] if images else [_named(name, split) for name in COCO_FOLDERS]
    check_inside([f"{folder}/x" for folder in folders if folder], "config.data.images")
    # Of the first images some may be missing.
    first = [str(entry.get("file_name", "")) for entry in entries[:_LOOKED_FOR]]
    there = [sum((root / name / file).is_file() for file in first) for name in folders]
    return PurePosixPath(folders[there.index(max(there))])


def _add_images(
    draft: Draft,
    entries: list[dict[str, Any]],
    folder: PurePosixPath,
    left_out: set[Any],
    where: str,
) -> dict[Any, int]:
    """The places of images by their ids."""
    places: dict[Any, int] = {}
    for number, entry in enumerate(entries):
        what = f"{where}: image {number}"
        identity = _value(entry, "id", int | str, what)
        if identity in places:
            draft.problem("doubled", f"image id {identity} ({entry.get('file_name')!r}) of {where}")
            continue
        if identity in left_out:
            continue
        name = _value(entry, "file_name", str, f"{what} (id {identity})")
        check_inside([name], f"{what} (id {identity})")
        corner, size = _corner(entry, f"{what} (id {identity})"), None
        height, width = entry.get("height"), entry.get("width")
        if corner is not None:
            size = (corner[3] - corner[1], corner[2] - corner[0])
        elif isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
            size = (height, width)
        place = draft.image((folder / name).as_posix(), size, corner=corner, where=what)
        if place is not None:
            places[identity] = place
    return places


def _corner(entry: dict[str, Any], what: str) -> tuple[int, int, int, int] | None:
    """The tile of its file that an image is."""
    if entry.get("corner") is None:
        return None
    try:
        left, top, right, bottom = map(int, _value(entry, "corner", list, what))
    except (TypeError, ValueError):
        left = top = right = bottom = 0
    if not (0 <= left < right and 0 <= top < bottom):
        raise DataError(f"{what} has a corner {entry['corner']!r:.60}; left, top, right, bottom")
    return left, top, right, bottom


def _add_objects(
    draft: Draft,
    entries: list[dict[str, Any]],
    places: dict[Any, int],
    numbers: Mapping[int, int],
    known: set[int] | None,
    left_out: set[Any],
) -> None:
    """The objects; those of other categories than `known` are a problem, if these are given."""
    seen: set[Any] = set()
    for number, entry in enumerate(entries):
        named = f"annotation {entry['id']}" if "id" in entry else f"annotation number {number}"
        what = f"{draft.where}: {named}"
        image = _value(entry, "image_id", int | str, what)
        category = _value(entry, "category_id", int, what)
        if image in left_out:
            continue
        said = f"{named} of image id {image}"
        if "id" in entry:
            if entry["id"] in seen:
                draft.problem("doubled", said)
                continue
            seen.add(entry["id"])
        if image not in places:
            draft.problem("unlisted", said)
            continue
        if category not in numbers:
            if known is not None:
                draft.problem("category", f"{said} (category {category})")
            continue
        try:
            left, top, width, height = map(float, _value(entry, "bbox", list, what))
            area = float(entry.get("area", "nan"))
        except (TypeError, ValueError):
            draft.problem("number", f"{said} ({entry.get('bbox')!r:.60})")
            continue
        place = numbers[category]
        draft.box(
            places[image],
            (left, top, left + width, top + height),
            place,
            said,
            area=area,
            crowd=bool(entry.get("iscrowd", 0)),
            ignored=place == REGION or any(entry.get(flag, 0) for flag in _FLAGS),
        )
