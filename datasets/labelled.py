"""What the builders of images with labels share: features, examples; the command of all."""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vadapt.data.label_files import Labels


class LabelsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """From files as they unpack; a kind of it says in `read` what they hold."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Labels of whole images."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Give as manual_dir the folder of the data set; see README.md."
    has_areas = False

    def read(self, path: Path) -> Mapping[str, Labels]:
        """The labels of every split that is there."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), doc="The file as it is."),
            "labels": tfds.features.Tensor(
                shape=(None,), dtype=np.int8, doc="1 there, 0 absent, -1 in doubt."
            ),
            "file": tfds.features.Text(doc="Path from the root."),
        }
        if self.has_areas:
            features["areas"] = tfds.features.Tensor(
                shape=(None,), dtype=np.float32, doc="Pixels of each label's objects."
            )
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(classes=[]),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        path = Path(dl_manager.manual_dir)
        splits = self.read(path)
        self.info.metadata["classes"] = list(next(iter(splits.values())).classes)
        return {name: self._generate_examples(path, labels) for name, labels in splits.items()}

    def _generate_examples(self, path: Path, labels: Labels) -> Iterator[tuple[str, Any]]:
        for row, file in enumerate(labels.files):
            # Bytes in a file object: arrays would need TensorFlow to encode them.
            image = io.BytesIO((path / file).read_bytes())
            record = {"image": image, "labels": labels.targets[row], "file": file}
            if self.has_areas and labels.areas is not None:
                record["areas"] = labels.areas[row]
            yield file, record


def main(
    builder: type[tfds.core.GeneratorBasedBuilder],
    text: str | None,
    arguments: Sequence[str] | None,
) -> int:
    """The command of a data set: prepares it as array_record."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", help="the data set as it unpacks")
    parser.add_argument("--tfds", required=True, help="prepare the TFDS data set there")
    options = parser.parse_args(arguments)
    if not Path(options.path).is_dir():
        parser.error(f"no folder {options.path!r}")
    built = builder(data_dir=options.tfds, file_format="array_record")
    manual = tfds.download.DownloadConfig(manual_dir=str(Path(options.path).resolve()))
    built.download_and_prepare(download_config=manual)
    for name, split in built.info.splits.items():
        print(f"{built.data_path}: {split.num_examples:,} images in {name!r}")
    return 0
