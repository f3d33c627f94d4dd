"""TinyPerson as a data set of TFDS, built and read without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from etils import epath

from vadapt.data.aerial_boxes import read_tiny_person
from vadapt.data.annotated import Draft
from vadapt.datasets.boxed import BoxesBuilder

SPLITS = ("train", "test")


class Builder(BoxesBuilder):
    """From the files as they unpack: see README.md."""

    pkg_dir_path = epath.Path(__file__).parent  # by its name, TFDS finds another in a clone

    def read(self, path: Path) -> Mapping[str, Draft]:
        return {name: read_tiny_person(path, name) for name in SPLITS}
