"""VOC 2007 with labels as a data set of TFDS, built and read without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from etils import epath

from vadapt.data.label_files import Labels, read_voc, voc_root
from vadapt.datasets.labelled import LabelsBuilder

SPLITS = ("trainval", "test")


class Builder(LabelsBuilder):
    """From Annotations, ImageSets and JPEGImages: see README.md."""

    pkg_dir_path = epath.Path(__file__).parent  # by its name, TFDS finds another in a clone

    def read(self, path: Path) -> Mapping[str, Labels]:
        lists = voc_root(path) / "ImageSets" / "Main"
        there = [name for name in SPLITS if (lists / f"{name}.txt").is_file()]
        return {name: read_voc(path, name) for name in there or SPLITS}
