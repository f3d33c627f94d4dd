"""Semantic segmentation: a head on a backbone, adapted or not, trained here and tested anywhere."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int, Key, Shaped, UInt8

from vadapt import system
from vadapt.data import pipeline
from vadapt.data.label_maps import class_colours
from vadapt.data.progress import with_progress
from vadapt.data.seen import LabelCounts, Unseen
from vadapt.data.stream import Stream
from vadapt.data.transforms import apply_all
from vadapt.drawing import colour_mask, contact_sheet, overlay, to_rgb
from vadapt.heads import segmentation_head
from vadapt.metrics.segmentation import Confusion, best_class, domain_scores, iou_per_class
from vadapt.nn.hooks import hook_losses
from vadapt.nn.trunk import Features
from vadapt.system import System
from vadapt.tasks import frozen_features, labelled
from vadapt.tasks.pixel_reports import ImageScores, class_rows
from vadapt.tasks.settings import SEGMENTATION_FIELDS
from vadapt.tasks.sliding import Inference, check_multiple
from vadapt.training.report import Report
from vadapt.training.task import Prediction


def pixel_scores(model: System, images: Float[Array, "b h w c"]) -> Float[Array, "b h w k"]:
    """Scores of every class at every pixel."""
    _, height, width, _ = images.shape
    return model.head.scores(model(images), (height, width))


class SegmentationTask:
    """Trains a head, and what the partition says of the backbone, on labelled pixels.

    Reads `config.data` (to train on), `config.train` (if there is one: several sets to train on)
    and `config.test`, both data sets by name, each of which differs from `config.data` in the
    fields that it gives; `config.model`, `config.method`, `config.neck`, `config.head`,
    `config.task` and `config.eval`.
    """

    evaluates_initial = False  # a new head knows nothing
    settings = SEGMENTATION_FIELDS
    known: Mapping[str, Any] = MappingProxyType({})  # see `training.task.Task`

    def __init__(self, config: Any):
        self.config = config
        settings = config.eval
        self.inference = Inference(
            crop=tuple(settings.crop) or None,
            stride=tuple(settings.stride) or None,
            windows=settings.windows,
            scales=tuple(settings.scales),
            flip=settings.flip,
        )

    @functools.cached_property
    def source(self) -> Any:
        """The training data."""
        return pipeline.training_source(self.config, labelled.READS)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the head's outputs."""
        known = tuple(self.known.get("classes", ()))
        return known or labelled.classes_of(self.config.data, self.source)

    @property
    def backbone_options(self) -> dict[str, Any]:
        """Options of the backbone besides its name and size."""
        return self.config.model.options.to_dict()

    @property
    def palette(self) -> UInt8[np.ndarray, "k 3"]:
        """A colour per class."""
        if "palette" in self.known:
            return np.asarray(self.known["palette"], np.uint8)
        # Files of older versions name the classes alone.
        return class_colours(len(self.classes)) if self.known else self.source.palette

    def build(self, *, pretrained: bool = True) -> System:
        """The model with its pretrained weights, the method applied, and a new head.

        Args:
            pretrained: False leaves every weight at random and reads no file.

        Raises:
            ConfigError: the backbone would leave out, or stretch, parts of images of
                `config.data.image_size`, or of windows of `config.eval.crop`.
        """
        number = len(self.classes) if pretrained else labelled.number_unread(self.config)
        head = functools.partial(segmentation_head, num_classes=number)
        model = system.build(
            self.config,
            system.with_head(self.config, head),
            options=self.backbone_options,
            known={"num_classes": number},
            pretrained=pretrained,
        )
        check_multiple("config.eval.crop", self.inference.crop, model.multiple)
        check_multiple("config.data.image_size", tuple(self.config.data.image_size), model.multiple)
        return model

    def stream(self) -> Stream:
        """Training batches: {"image": uint8 [b, h, w, c], "mask": uint8 [b, h, w], "size"}.

        With `config.data.cache` those of `frozen_features.training_stream`.
        """
        if self.config.data.get("cache", ""):
            return frozen_features.training_stream(self)
        feed = labelled.training_feed(self.config.data)
        feed = dataclasses.replace(feed, transforms=[*feed.transforms, self._learned])
        return pipeline.training_stream(self.config, feed, self.source)

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a whole batch of `stream`, without reading any data."""
        if self.config.data.get("cache", ""):
            return frozen_features.batch_shapes(self)
        return pipeline.batch_shapes(self.config, (*labelled.READS, "size"))

    def loss(
        self, model: System, batch: dict[str, Array], key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The sum of the head's terms for one batch, and the terms by name."""
        backbone_key, head_key, loss_key = jax.random.split(key, 3)
        labels = batch["mask"].astype(jnp.int32)
        trained = [x for x in (model.neck, model.head) if isinstance(x, nnx.Module)]
        for module in trained:
            module.train()  # norms take the batch's statistics; the backbone's never do
        if "image" in batch:
            images = labelled.normalise(self.config.data, batch["image"], batch["size"])
            features = model.features(images, backbone_key)
        else:
            features = Features(frozen_features.maps(batch), {})
        terms = model.head.loss(model.decode(features, head_key), labels, loss_key)
        terms |= hook_losses(model.backbone, features.outputs, batch)
        for module in trained:
            module.eval()
        return sum(terms.values(), jnp.zeros(())), terms

    def evaluate(self, model: System, on: str = "test") -> dict[str, float]:
        """mIoU, mean class accuracy and pixel accuracy of every test set, in percent.

        And the IoU of every class that is there, as "val/iou/road". "validation" takes the sets of
        `config.validation` if there are any. A class that is in none of a set's images, or in no
        crop of a whole pass over the training data, is named in the log.
        """
        sets = pipeline.evaluation_sets(self.config, on)
        return self._scores_of({name: self._count(model, name, sets[name]) for name in sets})

    def report(self, model: System) -> tuple[dict[str, float], dict[str, Report]]:
        """The scores of `evaluate` for the test sets, and a `Report` of each."""
        matrices, reports = {}, {}
        for name, data in pipeline.evaluation_sets(self.config, "test").items():
            each = ImageScores(len(self.classes))
            matrices[name] = self._count(model, name, data, each)
            reports[name] = Report(
                rows=class_rows(self.classes, matrices[name]),
                by="IoU",
                confusion=matrices[name],
                images=each.images(self, model, data),
            )
        return self._scores_of(matrices), reports

    def _count(
        self, model: System, name: str, data: Any, each: ImageScores | None = None
    ) -> Int[np.ndarray, "k k+1"]:
        """The confusion matrix of a test set, over all processes; `each` sees the images, too."""
        graph, state = nnx.split(model)
        tree = nnx.to_pure_dict(state)
        matrix = Confusion.empty(len(self.classes))
        source = pipeline.make_source(data, labelled.READS)
        batches = pipeline.evaluation_batches(
            data, labelled.evaluation_feed(data), source, self.config.eval.batch
        )
        for batch in with_progress(batches, f"testing on {name}"):
            size = batch["mask"].shape[1:]
            found = self._jitted_classes(graph, tree, batch["image"], size)
            matrix = _add(matrix, found, batch["mask"], batch["valid"])
            if each is not None:
                each.add(found, batch)
        counts = (
            np.asarray(multihost_utils.process_allgather(matrix.counts()))
            .reshape(-1, *matrix.low.shape)
            .sum(axis=0)
        )
        self._unseen.tell(f"test set {name!r}", self.classes, counts.sum(axis=1))
        return counts

    def _scores_of(self, matrices: Mapping[str, Int[np.ndarray, "k k+1"]]) -> dict[str, float]:
        if self._learned.records and self._learned.records >= len(self.source):
            self._unseen.tell("training crops", self.classes, self._learned.totals)
        classes = {
            f"{name}/iou/{label}": 100 * float(iou)
            for name, matrix in matrices.items()
            for label, iou in zip(self.classes, iou_per_class(matrix), strict=True)
            if not np.isnan(iou)
        }
        return domain_scores(matrices) | classes

    @functools.cached_property
    def _learned(self) -> LabelCounts:
        return LabelCounts("mask", len(self.classes))

    @functools.cached_property
    def _unseen(self) -> Unseen:
        return Unseen()

    def export(self, model: System) -> nnx.Module:
        """Return what people keep: all of it; the adapter file holds what was trained."""
        return model

    def predict(
        self,
        model: System,
        images: UInt8[np.ndarray, "b h w c"],
        size: tuple[int, int] | None = None,
    ) -> UInt8[np.ndarray, "b _ _"]:
        """The class of every pixel of images of one size; at another (height, width) if given.

        255 where the scores are NaN.
        """
        graph, state = nnx.split(model)
        size = (images.shape[1], images.shape[2]) if size is None else size
        return np.asarray(self._jitted_classes(graph, nnx.to_pure_dict(state), images, size))

    def predict_image(self, model: System, image: UInt8[np.ndarray, "h w c"]) -> Prediction:
        """`labels`, the class of every pixel, and `overlays`, these in colors over the image.

        Confidences are the probabilities of these classes; a row is a class, the largest first.
        """
        seen, size = self.prepare_image(image), (image.shape[0], image.shape[1])
        graph, state = nnx.split(model)
        found = self._jitted_sure(graph, nnx.to_pure_dict(state), seen[None], size)
        labels, sure = (np.asarray(array)[0] for array in found)
        both = overlay(to_rgb(image), colour_mask(labels, self.palette))
        number = len(self.classes)  # and 255 where the scores are NaN, which is no class
        counts = np.bincount(labels.ravel(), minlength=number)[:number]
        sums = np.bincount(labels.ravel(), sure.ravel(), minlength=number)
        rows = tuple(
            {
                "label": self.classes[k],
                "share": float(counts[k] / labels.size),
                "confidence": float(sums[k] / counts[k]),
            }
            for k in np.argsort(-counts, kind="stable")
            if counts[k]
        )
        return Prediction(
            arrays={"labels": labels},
            pictures={"overlays": both},
            confidences={"confidences": sure},
            rows=rows,
        )

    def respond(
        self, model: System, images: UInt8[Array, "b h w c"]
    ) -> dict[str, Shaped[Array, "b h w *k"]]:
        """`labels` (int32), the class of every pixel, 255 for none; `probabilities` of all."""
        seen = jax.vmap(self.prepare_image)(images)
        labels, probabilities = self._sure(model, seen, (images.shape[1], images.shape[2]))
        return {"labels": labels.astype(jnp.int32), "probabilities": probabilities}

    def prepare_image(self, image: UInt8[Any, "h w c"]) -> UInt8[Any, "_h _w c"]:
        """The image resized to fit, as for testing."""
        feed = labelled.evaluation_feed(self.config.data)
        return apply_all(feed.transforms, {"image": image}, np.random.default_rng(0))["image"]

    def pictures(
        self, model: System, batch: dict[str, np.ndarray]
    ) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """The first images of a batch, each a row of image, labels and predictions."""
        number = min(self.config.eval.num_pictures, len(batch["mask"]))
        if "image" not in batch:
            data, rows = self.config.data, batch["index"][:number]
            batch = pipeline.read(data, labelled.training_feed(data), self.source, rows)
        images, masks = batch["image"][:number], batch["mask"][:number]
        found, palette = self.predict(model, images), self.palette
        rows = [
            [image, *(colour_mask(classes, palette) for classes in (mask, prediction))]
            for image, mask, prediction in zip(images, masks, found, strict=True)
        ]
        legend = [(name, tuple(palette[i].tolist())) for i, name in enumerate(self.classes)]
        titles = ["image", "labels", "predicted"]
        return {"segmentation": contact_sheet(rows, titles, cell=128, legend=legend)}

    def _classes(self, graph: Any, tree: Any, images: Array, size: tuple[int, int]) -> Array:
        return best_class(self._scores(nnx.merge(graph, tree), images, size))

    def _scores(self, model: System, images: Array, size: tuple[int, int]) -> Array:
        pixels = labelled.normalise(self.config.data, images)
        inference = dataclasses.replace(self.inference, multiple=model.multiple)
        return inference(functools.partial(pixel_scores, model), pixels, size)

    def _sure(self, model: System, images: Array, size: tuple[int, int]) -> tuple[Array, Array]:
        """The classes of pixels (uint8 [b, h, w], 255 for none) and probabilities of all."""
        scores = self._scores(model, images, size).astype(jnp.float32)
        probabilities = getattr(model.head, "probabilities", jax.nn.softmax)(scores)
        return best_class(scores).astype(jnp.uint8), probabilities

    @functools.cached_property
    def _jitted_classes(self) -> Callable[..., Any]:
        def classes(graph: Any, tree: Any, images: Array, size: tuple[int, int]) -> Array:
            return self._classes(graph, tree, images, size).astype(jnp.uint8)

        return jax.jit(classes, static_argnums=(0, 3))

    @functools.cached_property
    def _jitted_sure(self) -> Callable[..., Any]:
        def sure(graph: Any, tree: Any, images: Array, size: tuple[int, int]) -> Any:
            labels, probabilities = self._sure(nnx.merge(graph, tree), images, size)
            return labels, probabilities.max(axis=-1)

        return jax.jit(sure, static_argnums=(0, 3))


@jax.jit
def _add(matrix: Confusion, found: Array, mask: Array, valid: Array) -> Confusion:
    return matrix.update(found, mask, valid)
