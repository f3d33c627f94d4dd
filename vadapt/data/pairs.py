"""Which images and masks of a segmentation data set belong together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vadapt.data.layouts import YAML, Layout
from vadapt.data.sources import IMAGE_SUFFIXES, find_files
from vadapt.data.untrusted import check_inside, doubled, first_of, read_lines
from vadapt.errors import DataError, nearest

_HINT = f"a file {YAML} there says where they are, as `images: FOLDER/*` and `masks: FOLDER/*`"


def list_pairs(root: Path, layout: Layout, split: str, labelled: bool) -> list[tuple[str, str]]:
    """(image, mask) of every sample of a split, as paths from the root, sorted or as listed.

    Args:
        split: a name of `layout.splits`, or what {split} stands for; "" takes all.
        labelled: False looks for no masks; theirs are then "".

    Raises:
        DataError: no image, an image without a mask, an unknown split, two files for one sample,
            a sample that is listed twice.
    """
    folders, listed = _split_folders(root, layout, split)
    images: dict[str, str] = {}
    masks: dict[str, str] = {}
    for folder in folders:
        for found, pattern in ((images, layout.images), (masks, layout.masks)):
            if found is masks and not labelled:
                continue
            for name, file in _match(root, pattern, folder).items():
                found[f"{folder}/{name}" if folder else name] = file
    wanted = sorted(images)
    if listed is not None:
        lacking = [name for name in listed if name not in images]
        if lacking:
            raise DataError(
                f"{len(lacking)} of {len(listed)} images that split {split!r} lists are not among "
                f"{layout.images!r} in {str(root)!r}: {first_of(lacking)}"
            )
        wanted = listed
    if not wanted:
        places = ", ".join(_filled(layout.images, folder) for folder in folders)
        raise DataError(
            f"no images {places} in {str(root)!r}{_other_splits(root, layout, split)}; {_HINT}"
        )
    if not labelled:
        return [(images[name], "") for name in wanted]
    lacking = [images[name] for name in wanted if name not in masks]
    if lacking:
        raise DataError(
            f"{len(lacking)} of {len(wanted)} images in {str(root)!r} have no mask "
            f"{layout.masks!r}: {first_of(lacking)}; {_HINT}"
        )
    return [(images[name], masks[name]) for name in wanted]


def _other_splits(root: Path, layout: Layout, split: str) -> str:
    """The folders that could stand for {split}, in words."""
    place = root / layout.images.partition("{split}")[0]
    if not split or "{split}" not in layout.images or not place.is_dir():
        return ""
    folders = [folder.name for folder in place.iterdir() if folder.is_dir()]
    return f" ({nearest(split, folders)})" if folders else ""


def _split_folders(
    root: Path, layout: Layout, split: str
) -> tuple[Sequence[str], list[str] | None]:
    """Return what {split} stands for, and the names in the split's list if it has one."""
    if not split:
        folders = [v for v in layout.splits.values() if not str(v).endswith(".txt")]
        if "{split}" not in layout.images or not folders:
            return [""], None
        each = [[value] if isinstance(value, str) else value for value in folders]
        return list(dict.fromkeys(folder for folders in each for folder in folders)), None
    value = layout.splits.get(split)
    if value is None:
        has_folders = "{split}" in layout.images
        if layout.splits or not has_folders:
            known = nearest(split, layout.splits) if layout.splits else "this data set has none"
            raise DataError(
                f"no split {split!r}; {known}. `splits:` in {YAML} names folders or lists"
            )
        value = split
        check_inside([split], "config.data.split")
    if isinstance(value, str) and value.endswith(".txt"):
        file = root / value
        if not file.is_file():
            raise DataError(f"split {split!r} is listed in {str(file)!r}, which is not there")
        names = [_stem(line) for line in read_lines(file)]
        check_inside(names, repr(str(file)))
        if twice := doubled(names):
            raise DataError(f"{str(file)!r} lists samples twice: {first_of(twice)}; once is enough")
        return [""], names
    return [value] if isinstance(value, str) else value, None


def _match(root: Path, pattern: str, folder: str) -> dict[str, str]:
    """Files by what the * of the pattern stands for; {split} is replaced, by nothing if empty."""
    pattern = _filled(pattern, folder)
    before, _, after = pattern.partition("*")
    place, _, prefix = before.rpartition("/")
    found: dict[str, str] = {}
    suffixes = (after,) if "." in after else tuple(after + suffix for suffix in IMAGE_SUFFIXES)
    for file in find_files(root / place, tuple(suffix.lower() for suffix in suffixes)):
        subfolder, slash, name = file.rpartition("/")
        if not name.startswith(prefix):
            continue
        suffix = next(end for end in suffixes if name.lower().endswith(end.lower()))
        name = subfolder + slash + name[len(prefix) : len(name) - len(suffix)]
        path = f"{place}/{file}" if place else file
        if name in found:
            raise DataError(f"two files for one sample in {str(root)!r}: {found[name]}, {path}")
        found[name] = path
    return found


def _filled(pattern: str, folder: str) -> str:
    """The pattern with {split} replaced, along with its slash if the folder is empty."""
    return pattern.replace("{split}" if folder else "{split}/", folder)


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else name
