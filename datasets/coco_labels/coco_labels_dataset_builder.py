"""COCO 2014 with labels as a data set of TFDS, built and read without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from etils import epath

from vadapt.data.label_files import Labels, read_coco
from vadapt.datasets.labelled import LabelsBuilder

SPLITS = ("train", "val")


class Builder(LabelsBuilder):
    """From `annotations/instances_*2014.json` and the images: see README.md."""

    pkg_dir_path = epath.Path(__file__).parent  # by its name, TFDS finds another in a clone
    has_areas = True

    def read(self, path: Path) -> Mapping[str, Labels]:
        files = {name: path / "annotations" / f"instances_{name}2014.json" for name in SPLITS}
        there = [name for name, file in files.items() if file.is_file()]
        return {name: read_coco(path, name) for name in there or SPLITS}
