"""Object detection: a head on a backbone, adapted or not, that finds boxes; scored as COCO is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key, Shaped, UInt8

from vadapt import system
from vadapt.boxes.geometry import ImageSizes
from vadapt.boxes.nms import Detections
from vadapt.data import pipeline
from vadapt.data.detection import merge_found
from vadapt.data.label_maps import class_colours
from vadapt.data.numbered import ELEMENT
from vadapt.data.progress import with_progress
from vadapt.data.stream import Stream
from vadapt.data.tiling import tile_corners
from vadapt.drawing import contact_sheet, draw_boxes
from vadapt.errors import ConfigError, nearest
from vadapt.heads import box_head
from vadapt.metrics.detection import BoxAnswers, Found, Truth
from vadapt.nn.hooks import hook_losses
from vadapt.system import System
from vadapt.tasks import box_reports, boxed
from vadapt.tasks.settings import DETECTION_FIELDS
from vadapt.tasks.sliding import check_multiple
from vadapt.training.report import Report
from vadapt.training.task import FoundBox, Prediction


class Scored(NamedTuple):
    """What was found in a test set, and what is there; of whole pictures, where it is tiled."""

    source: Any
    found: Found
    truth: Truth


class DetectionTask:
    """Trains a head, and what the partition says of the backbone, on images with boxes.

    Reads `config.data` (to train on), `config.train` (if there is one: several sets to train on)
    and `config.test`, both data sets by name, each of which differs from `config.data` in the
    fields that it gives; `config.model`, `config.method`, `config.neck`, `config.head`,
    `config.task` and `config.eval`.
    """

    evaluates_initial = False  # a new head knows nothing
    settings = DETECTION_FIELDS
    known: Mapping[str, Any] = MappingProxyType({})  # see `training.task.Task`

    def __init__(self, config: Any):
        self.config = config
        name = config.eval.protocol
        if name not in boxed.PROTOCOLS:
            raise ConfigError(
                f"unknown config.eval.protocol {name!r}; {nearest(name, boxed.PROTOCOLS)}"
            )
        self.protocol = boxed.PROTOCOLS[name]

    @functools.cached_property
    def source(self) -> Any:
        """The training data."""
        return pipeline.training_source(self.config, boxed.READS)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the head's outputs."""
        return tuple(self.known.get("classes", ())) or tuple(self.source.classes)

    @property
    def backbone_options(self) -> dict[str, Any]:
        """Options of the backbone besides its name and size."""
        return self.config.model.options.to_dict()

    @property
    def palette(self) -> UInt8[np.ndarray, "k 3"]:
        """A color per class."""
        if "palette" in self.known:
            return np.asarray(self.known["palette"], np.uint8)
        return class_colours(max(len(self.classes), 2)) if self.known else self.source.palette

    def build(self, *, pretrained: bool = True) -> System:
        """The model with its pretrained weights, the method applied, and a new head.

        Args:
            pretrained: False leaves every weight at random and reads no file.

        Raises:
            ConfigError: the backbone would leave out, or stretch, parts of images of
                `config.data.image_size`.
        """
        number = len(self.classes) if pretrained else boxed.number_unread(self.config)
        model = system.build(
            self.config,
            system.with_head(self.config, functools.partial(box_head, num_classes=number)),
            options=self.backbone_options,
            known={"num_classes": number},
            pretrained=pretrained,
        )
        check_multiple("config.data.image_size", tuple(self.config.data.image_size), model.multiple)
        return model

    def stream(self) -> Stream:
        """Training batches: "image" (uint8 [b, h, w, c]), its "size", and boxes with classes."""
        return pipeline.training_stream(
            self.config, boxed.training_feed(self.config.data), self.source
        )

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a whole batch of `stream`, without reading any data."""
        return pipeline.batch_shapes(self.config, boxed.training_feed(self.config.data).fields)

    def loss(
        self, model: System, batch: dict[str, Array], key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The sum of the head's terms for one batch, and the terms by name."""
        backbone_key, head_key = jax.random.split(key)
        trained = [x for x in (model.neck, model.head) if isinstance(x, nnx.Module)]
        for module in trained:
            module.train()  # norms take the batch's statistics; the backbone's never do
        features = model.features(self._pixels(batch["image"], batch["size"]), backbone_key)
        terms = model.head.loss(
            model.decode(features, head_key),
            *boxed.ground_truth(batch),
            self._sizes(batch["image"], batch["size"]),
        )
        terms |= hook_losses(model.backbone, features.outputs, batch)
        for module in trained:
            module.eval()
        return sum(terms.values(), jnp.zeros(())), terms

    def evaluate(self, model: System, on: str = "test") -> dict[str, float]:
        """Average precision of every test set in percent, by `config.eval.protocol`.

        And the AP of every class, as "val/AP/car". "validation" takes the sets of
        `config.validation` if there are any.
        """
        scores = {}
        for name, data in pipeline.evaluation_sets(self.config, on).items():
            scores |= self._scores(name, self._look_at(model, name, data))
        return scores

    def report(self, model: System) -> tuple[dict[str, float], dict[str, Report]]:
        """The scores of `evaluate` for the test sets, and a `Report` of each."""
        scores, reports = {}, {}
        for name, data in pipeline.evaluation_sets(self.config, "test").items():
            scored = self._look_at(model, name, data)
            scores |= self._scores(name, scored)
            reports[name] = Report(
                rows=box_reports.class_rows(
                    self.classes, scored.found, scored.truth, self.protocol.rules
                ),
                by="AP",
                images=box_reports.worst_images(self, scored),
            )
        return scores, reports

    def _look_at(self, model: System, name: str, data: Any) -> Scored:
        """What is found in a test set, over all processes."""
        graph, state = nnx.split(model)
        tree = nnx.to_pure_dict(state)
        source = pipeline.make_source(data, boxed.READS, classes=self.classes)
        answers = BoxAnswers()
        batches = pipeline.evaluation_batches(
            data, boxed.evaluation_feed(data), source, self.config.eval.batch
        )
        for batch in with_progress(batches, f"testing on {name}"):
            found = self._jitted_detect(graph, tree, *(batch[name] for name in boxed.SEEN))
            boxes, scores, classes, kept, _ = map(np.asarray, found)
            answers.add(batch[ELEMENT], boxes, scores, classes, kept=kept, valid=batch["valid"])
        found, elements = answers.found()
        pictures = np.unique(source.pictures[elements]).tolist()
        truth = source.truth(pictures, heed_ignored=self.protocol.heeds_ignored)
        regions = functools.partial(source.regions, pictures)
        return Scored(source, *self.protocol.cut(source.whole(found), truth, regions))

    def _scores(self, name: str, scored: Scored) -> dict[str, float]:
        found = self.protocol.scores(scored.found, scored.truth, self.classes)
        return {f"{name}/{metric}": value for metric, value in found.items() if value == value}

    def export(self, model: System) -> nnx.Module:
        """Return what people keep: all of it; the adapter file holds what was trained."""
        return model

    def predict_image(self, model: System, image: UInt8[np.ndarray, "h w c"]) -> Prediction:
        """`boxes`, the objects from a score of `config.eval.shown` on; `pictures` show them.

        A large image is seen tile by tile, if `config.eval.tile` says of which size.
        """
        found = self._find(model, image)
        found = found.rows(found.scores >= self.config.eval.shown)
        boxes = tuple(
            FoundBox(self.classes[number], int(number), float(score), (left, top, right, bottom))
            for number, score, (left, top, right, bottom) in zip(
                found.classes, found.scores, found.boxes_xyxy.tolist(), strict=True
            )
        )
        drawn = self._draw(image, found.boxes_xyxy, found.classes)
        return Prediction(pictures={"boxes": drawn}, boxes=boxes)

    def _draw(
        self,
        image: UInt8[np.ndarray, "h w c"],
        boxes: Float[np.ndarray, "n 4"],
        classes: Int[np.ndarray, " n"],
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The image with boxes in the colors of their classes."""
        return draw_boxes(image, boxes, self.palette[classes].tolist())

    def _find(self, model: System, image: UInt8[np.ndarray, "h w c"]) -> Found:
        """The objects of an image of any size, the best first."""
        tile = tuple(self.config.eval.tile)
        size, whole = image.shape[:2], (0, 0, image.shape[1], image.shape[0])
        corners = np.array([whole], np.int64)
        if tile:
            corners = tile_corners(size, tile, tuple(self.config.eval.tile_overlap))
        parts = [
            self._find_whole(model, image[top:bottom, left:right])
            for left, top, right, bottom in corners.tolist()
        ]
        return parts[0] if len(parts) == 1 else merge_found(parts, corners)

    def _find_whole(self, model: System, image: UInt8[np.ndarray, "h w c"]) -> Found:
        record = boxed.prepared(self.config.data, image)
        graph, state = nnx.split(model)
        fields = (record[name][None] for name in boxed.SEEN)
        found = self._jitted_detect(graph, nnx.to_pure_dict(state), *fields)
        boxes, scores, classes, kept, _ = (np.asarray(x)[0] for x in found)
        return Found(np.zeros(int(kept.sum()), np.int32), classes[kept], boxes[kept].astype(float),
                     scores[kept])  # fmt: skip

    def respond(
        self, model: System, images: UInt8[Array, "b h w c"]
    ) -> dict[str, Shaped[Array, "b k *c"]]:
        """`boxes` (corners in pixels of the images), `scores`, `classes` and which are `valid`."""
        if not images.shape[1:3] == tuple(self.config.data.image_size):
            raise ConfigError(
                f"detection is exported for images of {tuple(self.config.data.image_size)}, "
                f"config.data.image_size; these are {images.shape[1:3]}"
            )
        sizes = jnp.broadcast_to(jnp.asarray(images.shape[1:3])[None], (len(images), 2))
        found = self._detect(model, images, sizes, jnp.ones((len(images), 2)))
        return {
            "boxes": found.boxes,
            "scores": found.scores,
            "classes": found.classes.astype(jnp.int32),
            "valid": found.valid,
        }

    def prepare_image(self, image: UInt8[Any, "h w c"]) -> UInt8[Any, "_h _w c"]:
        """The image resized and padded as for testing."""
        return boxed.prepared(self.config.data, image)["image"]

    def pictures(
        self, model: System, batch: dict[str, np.ndarray]
    ) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """The first images of a batch, each a row: boxes that are there, and those found."""
        number = min(self.config.eval.num_pictures, len(batch["image"]))
        graph, state = nnx.split(model)
        few = {name: batch[name][:number] for name in ("image", "size")}
        unscaled = np.ones((number, 2), np.float32)
        found = self._jitted_detect(graph, nnx.to_pure_dict(state), *few.values(), unscaled)
        found_boxes, scores, found_classes, kept, _ = map(np.asarray, found)
        sides = (
            tuple(map(np.asarray, boxed.ground_truth(batch))),
            (found_boxes, found_classes, kept & (scores >= self.config.eval.shown)),
        )
        rows = [
            [
                self._draw(batch["image"][i], boxes[i][valid[i]], classes[i][valid[i]])
                for boxes, classes, valid in sides
            ]
            for i in range(number)
        ]
        legend = [(name, tuple(self.palette[k].tolist())) for k, name in enumerate(self.classes)]
        titles = ["boxes", f"found, from {self.config.eval.shown:g} on"]
        return {"detections": contact_sheet(rows, titles, cell=256, legend=legend)}

    def _pixels(self, images: Array, sizes: Array) -> Array:
        return boxed.normalise(self.config.data, images, sizes)

    def _sizes(self, images: Array, sizes: Array) -> ImageSizes:
        return boxed.image_sizes(self.config.data, images.shape[1:3], sizes)

    def _detect(self, model: System, images: Array, sizes: Array, scales: Array) -> Detections:
        settings = self.config.eval
        found = model(self._pixels(images, sizes))
        return model.head.detect(
            found,
            self._sizes(images, sizes),
            scales=scales.astype(jnp.float32)[:, ::-1],
            before=settings.before,
            least=settings.least,
            most=settings.most,
        )

    @functools.cached_property
    def _jitted_detect(self) -> Callable[..., Detections]:
        def detect(graph: Any, tree: Any, images: Array, sizes: Array, scales: Array) -> Detections:
            return self._detect(nnx.merge(graph, tree), images, sizes, scales)

        return jax.jit(detect, static_argnums=0)
