"""Images with boxes: what detection wants of `config.data` and `config.test`, and how it scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from vadapt.boxes.geometry import ImageSizes
from vadapt.data import pipeline
from vadapt.data.aerial_boxes import FLIR_CLASSES, VISDRONE_CLASSES
from vadapt.data.detection_transforms import (
    SCALE,
    KeepRatioResize,
    LargestBoxes,
    PadToMultiple,
)
from vadapt.data.fields import Record
from vadapt.data.pipeline import Feed
from vadapt.data.scenes import THINGS
from vadapt.data.segmentation_transforms import PadTo
from vadapt.data.transforms import HorizontalFlip, Transform, apply_all
from vadapt.metrics.aerial import (
    TINY_PERSON,
    VISDRONE,
    tiny_person_scores,
    without_ignored_regions,
)
from vadapt.metrics.detection import (
    COCO,
    Curves,
    Found,
    Rules,
    Truth,
    class_precision,
    coco_scores,
    detection_curves,
)
from vadapt.tasks import inputs

READS = ("image", "boxes_xyxy", "box_classes", "box_ignored")
SEEN = ("image", "size", SCALE)  # of an image as for testing
# Classes of data sets whose names say them, for plans without data; of others as many as COCO has.
_NUMBERS = {
    "scene_boxes": len(THINGS),
    "visdrone": len(VISDRONE_CLASSES),
    "visdrone_coco": len(VISDRONE_CLASSES),
    "tiny_person": 1,
    "flir": len(FLIR_CLASSES),
}
_COCO = 80


class Protocol(NamedTuple):
    """How a data set's detections are scored.

    Args:
        scores_of: curves to scores by name, the first of them the one that papers print.
        heeds_ignored: objects that are said to be ignored are; else crowds alone are.
        drops_regions: what lies in ignored regions is dropped first.
    """

    rules: Rules = COCO
    scores_of: Callable[[Curves, Rules], dict[str, float]] = coco_scores
    heeds_ignored: bool = False
    drops_regions: bool = False

    def cut(self, found: Found, truth: Truth, regions: Callable[[], Truth]) -> tuple[Found, Truth]:
        """Detections and objects that count."""
        if not self.drops_regions:
            return found, truth
        return without_ignored_regions(found, truth, regions())

    def scores(self, found: Found, truth: Truth, classes: Sequence[str]) -> dict[str, float]:
        """Scores in percent by name, and the AP of every class, as "AP/car"."""
        curves = detection_curves(found, truth, len(classes), self.rules)
        each = 100 * class_precision(curves, self.rules)
        by_class = {f"AP/{name}": float(x) for name, x in zip(classes, each, strict=True)}
        return self.scores_of(curves, self.rules) | by_class


# config.eval.protocol: COCO's, which papers on VisDrone print, too; VisDrone's own tool's; and the
# benchmark's of TinyPerson.
PROTOCOLS = {
    "coco": Protocol(),
    "visdrone": Protocol(VISDRONE, drops_regions=True),
    "tiny_person": Protocol(TINY_PERSON, tiny_person_scores, heeds_ignored=True),
}


def training_feed(data: Any) -> Feed:
    """Images resized with their aspect, flipped half of the time, padded to `image_size`.

    Fields of `config.data`: `image_size`; `short_edges` (one of which is drawn for the shorter
    side; none: as large as fits) and `longest`; `max_boxes` (of an image with more, the largest
    stay); `mean`, the color of the margins.
    """
    size = tuple(data.image_size)
    longest = data.longest or max(size)
    fits = tuple((longest, min(short, longest)) for short in data.short_edges)
    transforms: list[Transform] = [
        KeepRatioResize(fits or ((max(size), min(size)),), within=size),
        HorizontalFlip(),
        LargestBoxes(data.max_boxes),
        PadTo(size, _margin(data)),
    ]
    return Feed(transforms, (*READS, "size"), READS)


def evaluation_feed(data: Any) -> Feed:
    """Images resized into `test_longest` and `test_shortest` (0: into `image_size`), without boxes.

    They are padded to the next sides that `multiple` divides, so that images of one size are in one
    batch, or with a `multiple` of 0 to `image_size`.
    """
    size = tuple(data.image_size)
    fit = (data.test_longest or max(size), data.test_shortest or min(size))
    pad = (
        PadToMultiple(data.multiple, _margin(data)) if data.multiple else PadTo(size, _margin(data))
    )
    resize = KeepRatioResize((fit,), within=() if data.multiple else size)
    return Feed([resize, pad], SEEN, ("image",), by_size=True)


def _margin(data: Any) -> tuple[int, int, int]:
    red, green, blue = np.broadcast_to(np.asarray(data.mean) * 255, 3).round().astype(int).tolist()
    return red, green, blue


def number_unread(config: Any) -> int:
    """How many classes the training data have, as far as settings say it."""
    sets: list[Any] = [*pipeline.data_sets(config, "train").values()] or [config.data]
    names = [name for data in sets for name in (data.source, data.get("layout", ""))]
    return next((_NUMBERS[name] for name in names if name in _NUMBERS), _COCO)


def prepared(data: Any, image: UInt8[Any, "h w c"]) -> Record:
    """An image as for testing: "image", "size" and "scale_factor"."""
    feed = evaluation_feed(data)
    record = apply_all(feed.transforms, {"image": image}, np.random.default_rng(0))
    return {name: np.asarray(record[name]) for name in feed.fields}


def ground_truth(
    batch: Mapping[str, Any],
) -> tuple[Float[Any, "b m 4"], Int[Any, "b m"], Bool[Any, "b m"]]:
    """Boxes, classes, and which of them are to be learned: ignored ones and regions are not."""
    classes = batch["box_classes"]
    valid = batch["boxes_xyxy_valid"] & (classes >= 0) & ~batch["box_ignored"]
    return batch["boxes_xyxy"], classes, valid


def image_sizes(data: Any, frame: Sequence[int], sizes: Int[Array, "b 2"]) -> ImageSizes:
    """Sizes of images in a frame that is theirs and, as far as `multiple` says, more than that."""
    step = data.multiple or 1
    padded = -(-sizes // step) * step
    return ImageSizes(jnp.minimum(padded, jnp.asarray(frame)[None]), sizes)


def normalise(
    data: Any, images: UInt8[Array, "b h w c"], sizes: Int[Array, "b 2"]
) -> Float[Array, "b h w 3"]:
    """Images as the model sees them: less `data.mean`, over `data.std`, padding exactly zero."""
    return inputs.blank_padding(inputs.normalise(images, data.mean, data.std), sizes)
