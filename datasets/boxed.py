"""What the builders of images with boxes share: features, examples."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from vadapt.data.annotated import Annotated, Annotations, Draft, Handling
from vadapt.data.decode import decode_image

# What the files say, to be handled as a run's config says; what cannot be read stops the build.
AS_IT_IS = Handling(boxes="keep", records="raise")


class BoxesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """From files as they unpack; a kind of it says in `read` what they hold."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Boxes of objects."}  # noqa: RUF012
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Give as manual_dir the folder of the data set; see README.md."

    def read(self, path: Path) -> Mapping[str, Draft]:
        """What the files say of every split that is there."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        def rows(dtype: Any, doc: str, *rest: int) -> Any:
            return tfds.features.Tensor(shape=(None, *rest), dtype=dtype, doc=doc)

        features = {
            "image": tfds.features.Image(shape=(None, None, 3), doc="The file as it is."),
            "boxes_xyxy": rows(
                np.float32, "Left, top, right, bottom in pixels, ends exclusive.", 4
            ),
            "box_classes": rows(np.int32, "Places among the classes; -1: an ignored region."),
            "box_areas": rows(np.float32, "Square pixels."),
            "box_crowds": rows(np.bool_, "A group of objects."),
            "box_ignored": rows(np.bool_, "Does not count, as crowds do not."),
            "file": tfds.features.Text(doc="Path from the root, and the corners of a tile."),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(classes=[]),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        path = Path(dl_manager.manual_dir)
        splits = {name: draft.finish(AS_IT_IS) for name, draft in self.read(path).items()}
        self.info.metadata["classes"] = list(next(iter(splits.values())).classes)
        return {name: self._generate_examples(path, known) for name, known in splits.items()}

    def _generate_examples(self, path: Path, known: Annotations) -> Iterator[tuple[str, Any]]:
        for image in known.images:
            name = image.file if image.corner is None else f"{image.file} {image.corner}"
            yield (
                name,
                {
                    "image": _content(path, image),
                    "boxes_xyxy": image.boxes_xyxy.astype(np.float32),
                    "box_classes": image.classes,
                    "box_areas": image.areas.astype(np.float32),
                    "box_crowds": image.crowds,
                    "box_ignored": image.ignored | image.crowds,
                    "file": name,
                },
            )


def _content(path: Path, image: Annotated) -> io.BytesIO:
    """The bytes of an image; a tile as PNG, so that no loss is added."""
    # Bytes in a file object: arrays would need TensorFlow to encode them.
    content = (path / image.file).read_bytes()
    if image.corner is None:
        return io.BytesIO(content)
    left, top, right, bottom = image.corner
    tile = io.BytesIO()
    Image.fromarray(decode_image(content)[top:bottom, left:right]).save(tile, "PNG")
    return io.BytesIO(tile.getvalue())
