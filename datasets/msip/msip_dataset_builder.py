"""MSIP as a data set of TFDS, built and read without TensorFlow."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from vadapt.data.msip import list_images, list_subsets
from vadapt.data.roi_table import NO_ROIS, SubsetRois
from vadapt.datasets.msip import assemble


class Builder(tfds.core.GeneratorBasedBuilder):
    """From the raw downloads, or from the assembled folders: see README.md."""

    pkg_dir_path = epath.Path(__file__).parent  # by its name, TFDS finds another in a clone
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The eight data sets of the paper."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Give as manual_dir either the folder of the eight downloads (python -m vadapt.datasets.msip RAW
    lists what is missing and where to get it) or the assembled one: <sub-set>/thermal/<image>.
    """

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), doc="The file as it is."),
            "source": tfds.features.Text(doc="The sub-set."),
            "file": tfds.features.Text(doc="Where the image was read from."),
            "rois": tfds.features.Tensor(
                shape=(None, 4), dtype=np.int32, doc="Candidates of objects, (x, y, w, h)."
            ),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {"train": self._generate_examples(Path(dl_manager.manual_dir))}

    def _generate_examples(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        generate = _assembled if _is_assembled(path) else _raw
        for subset, name, source, data, rois in generate(path):
            # Bytes in a file object: arrays would need TensorFlow to encode them.
            record = {"image": io.BytesIO(data), "source": subset, "file": source, "rois": rois}
            yield f"{subset}/{name}", record


def _is_assembled(path: Path) -> bool:
    return any(folder.is_dir() for folder in path.glob(f"*/{assemble.IMAGES}"))


def _assembled(path: Path) -> Iterator[tuple[str, str, str, bytes, np.ndarray]]:
    for subset in list_subsets(path):
        rois = SubsetRois(path / subset)
        for name in list_images(path / subset):
            file = path / subset / assemble.IMAGES / name
            yield subset, name, str(file), file.read_bytes(), rois(name)


def _raw(path: Path) -> Iterator[tuple[str, str, str, bytes, np.ndarray]]:
    found = assemble.find(path)
    if not any(one.images for one in found):
        raise FileNotFoundError(f"none of the eight data sets in {path}\n{assemble.report(found)}")
    for one in found:
        for example in assemble.examples(one):
            data = example.path.read_bytes() if example.data is None else example.data
            yield example.subset, example.name, str(example.path), data, NO_ROIS
