"""The 19 tasks of VTAB-1k, a thousand training images each, and their files.

Source: VTAB, arXiv:1910.04867; groups and numbers of classes as VPT and SSF evaluate them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vadapt.data.label_files import Labels, check_files, one_label_each
from vadapt.data.untrusted import numbered_lines
from vadapt.errors import DataError, nearest

_DIGITS = 10  # more are no number of a class
SPLITS = ("train800", "val200", "train800val200", "test")
NATURAL, SPECIALIZED, STRUCTURED = GROUPS = ("Natural", "Specialized", "Structured")


class VtabTask(NamedTuple):
    """One of the benchmark's tasks."""

    group: str
    num_classes: int


# By the names of their folders in the published download.
TASKS = {
    "caltech101": VtabTask(NATURAL, 102),
    "cifar": VtabTask(NATURAL, 100),
    "dtd": VtabTask(NATURAL, 47),
    "oxford_flowers102": VtabTask(NATURAL, 102),
    "oxford_iiit_pet": VtabTask(NATURAL, 37),
    "sun397": VtabTask(NATURAL, 397),
    "svhn": VtabTask(NATURAL, 10),
    "patch_camelyon": VtabTask(SPECIALIZED, 2),
    "eurosat": VtabTask(SPECIALIZED, 10),
    "resisc45": VtabTask(SPECIALIZED, 45),
    "diabetic_retinopathy": VtabTask(SPECIALIZED, 5),
    "clevr_count": VtabTask(STRUCTURED, 8),
    "clevr_dist": VtabTask(STRUCTURED, 6),
    "dmlab": VtabTask(STRUCTURED, 6),
    "dsprites_loc": VtabTask(STRUCTURED, 16),
    "dsprites_ori": VtabTask(STRUCTURED, 16),
    "kitti": VtabTask(STRUCTURED, 4),
    "smallnorb_azi": VtabTask(STRUCTURED, 18),
    "smallnorb_ele": VtabTask(STRUCTURED, 9),
}


def read_vtab(root: Path, split: str, task: str) -> Labels:
    """A task's `SPLIT.txt`, of lines "path label", and images where these paths lead from it.

    Classes are the numbers 0 to K - 1, all K of them whichever the split has.

    Args:
        root: the folder of the task, or that of all tasks.
        split: one of `SPLITS`: 800 images to learn from, 200 to choose settings by, or both.
        task: one of `TASKS`.

    Raises:
        DataError: a file is missing, or a line is no path and label of the task; says which line.
    """
    if split not in SPLITS:
        raise DataError(f"VTAB-1k has no split {split!r}; {nearest(split, SPLITS)}")
    inner = "" if (root / f"{split}.txt").is_file() else f"{task}/"
    listed = root / inner / f"{split}.txt"
    if not listed.is_file():
        raise DataError(f"no {split}.txt in {str(root)!r} nor in {task!r} therein")
    number_of_classes = TASKS[task].num_classes
    numbers, files, labels = [], [], []
    for number, line in numbered_lines(listed):
        file, label = _parsed(line, number_of_classes, f"{str(listed)!r}, line {number}")
        numbers.append(number)
        files.append(f"{inner}{file}")
        labels.append(label)
    if not files:
        raise DataError(f"{str(listed)!r} names no image; download it again")
    check_files(root, files, str(listed), numbers)
    classes = tuple(map(str, range(number_of_classes)))
    return one_label_each(files, labels, classes, repr(str(listed)))


def _parsed(line: str, number_of_classes: int, where: str) -> tuple[str, int]:
    """The path and the label of a line; a path may have spaces in it."""
    *file, label = line.rsplit(maxsplit=1)
    if not file or not (label.isascii() and label.isdigit() and len(label) < _DIGITS):
        raise DataError(f"{where}: {line!r} is no path and number of a class, a space between")
    if int(label) >= number_of_classes:
        raise DataError(f"{where}: class {label}; this task's are 0 to {number_of_classes - 1}")
    return file[0], int(label)
