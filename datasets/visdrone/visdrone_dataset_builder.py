"""VisDrone2019-DET as a data set of TFDS, built and read without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from etils import epath

from vadapt.data.aerial_boxes import read_visdrone
from vadapt.data.annotated import Draft
from vadapt.datasets.boxed import BoxesBuilder

SPLITS = ("train", "val", "test-dev")


class Builder(BoxesBuilder):
    """From the files as they unpack: see README.md."""

    pkg_dir_path = epath.Path(__file__).parent  # by its name, TFDS finds another in a clone

    def read(self, path: Path) -> Mapping[str, Draft]:
        there = [name for name in SPLITS if (path / f"VisDrone2019-DET-{name}").is_dir()]
        # Names of splits in TFDS have no hyphen.
        return {name.replace("-", "_"): read_visdrone(path, name) for name in there or SPLITS[:1]}
