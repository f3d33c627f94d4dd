"""FLIR ADAS v1 as a data set of TFDS, built and read without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from etils import epath

from vadapt.data.aerial_boxes import read_flir
from vadapt.data.annotated import Draft
from vadapt.datasets.boxed import BoxesBuilder

SPLITS = ("train", "val")


class Builder(BoxesBuilder):
    """From the files as they unpack: see README.md."""

    pkg_dir_path = epath.Path(__file__).parent  # by its name, TFDS finds another in a clone

    def read(self, path: Path) -> Mapping[str, Draft]:
        root = path / "FLIR" if (path / "FLIR").is_dir() else path
        there = [name for name in SPLITS if (root / name).is_dir()]
        return {name: read_flir(path, name) for name in there or SPLITS}
