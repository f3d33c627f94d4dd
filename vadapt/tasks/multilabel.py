"""Recognition of several labels an image: a head on a backbone, trained alone or with it."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from vadapt import models, system
from vadapt.data import pipeline
from vadapt.data.progress import with_progress
from vadapt.data.seen import LabelCounts, Unseen
from vadapt.data.stream import Stream
from vadapt.data.transforms import apply_all
from vadapt.drawing import contact_sheet, draw_chosen, to_rgb
from vadapt.errors import ConfigError
from vadapt.heads import label_head
from vadapt.losses.multilabel import label_losses
from vadapt.metrics.multilabel import Answers, average_precision, choose, label_scores
from vadapt.system import System
from vadapt.tasks import image_labels, inputs, label_reports
from vadapt.tasks.settings import MULTILABEL_FIELDS
from vadapt.training.report import Report
from vadapt.training.task import Prediction

COLUMNS = ("image", "first label", "second", "third")  # of pictures


class MultilabelTask:
    """Trains a head, and what the partition says of the backbone, on images with labels.

    Reads `config.data` (to train on), `config.train` (if there is one: several sets to train on)
    and `config.test`, both data sets by name, each of which differs from `config.data` in the
    fields that it gives; `config.model`, `config.method`, `config.neck` (if there is one),
    `config.head`, `config.task` and `config.eval`.
    """

    evaluates_initial = False  # a new head knows nothing
    settings = MULTILABEL_FIELDS
    known: Mapping[str, Any] = MappingProxyType({})  # see `training.task.Task`

    def __init__(self, config: Any):
        self.config = config

    @functools.cached_property
    def source(self) -> Any:
        """The training data."""
        return pipeline.training_source(self.config, image_labels.FIELDS)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the head's outputs."""
        return tuple(self.known.get("classes", ())) or self.source.classes

    @property
    def backbone_options(self) -> dict[str, Any]:
        """Options of the backbone besides its name and size."""
        return self.config.model.options.to_dict()

    def build(self, *, pretrained: bool = True) -> System:
        """The model with its pretrained weights, the method applied, and a new head.

        With `config.task.load_head` the weights are those of the head, too.

        Args:
            pretrained: False leaves every weight at random and reads no file.

        Raises:
            ConfigError: the data have another number of labels than `config.data.num_labels`.
        """
        number = len(self.classes) if pretrained else self.num_labels
        wanted = self.config.data.num_labels
        if pretrained and wanted and wanted != number:
            raise ConfigError(
                f"{self.source!r} has {number} labels and config.data.num_labels is {wanted}; 0 "
                "takes what there is"
            )
        if pretrained:
            warn_of_pixels(self.config)
        head = functools.partial(label_head, num_labels=number)
        return system.build(
            self.config,
            system.with_head(self.config, head),
            options=self.backbone_options,
            known={"num_classes": number},
            holds="adapted" if self.config.task.load_head else "backbone",
            pretrained=pretrained,
        )

    @property
    def num_labels(self) -> int:
        """Without data, to plan: as the config says, or as many as COCO has."""
        return self.config.data.num_labels or 80

    def stream(self) -> Stream:
        """Training batches: {"image": uint8 [b, h, w, c], "labels": int8 [b, l]}."""
        feed = image_labels.training_feed(self.config.data)
        feed = dataclasses.replace(feed, transforms=[*feed.transforms, self._learned])
        return pipeline.training_stream(self.config, feed, self.source)

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a whole batch of `stream`, without reading any data."""
        return pipeline.batch_shapes(self.config, image_labels.FIELDS, self.num_labels)

    def loss(
        self, model: System, batch: dict[str, Array], key: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The sum of the terms for one batch, and the terms by name.

        With `config.task.train_norms` the norms of the backbone, too, take the batch's statistics.
        """
        learning = model if self.config.task.train_norms else model.head
        learning.train()
        terms = self.terms(model, self.pixels(batch["image"]), batch["labels"], key)
        learning.eval()
        return sum(terms.values(), jnp.zeros(())), terms

    def terms(
        self, model: System, pixels: Array, labels: Array, key: Key[Array, ""]
    ) -> dict[str, Float[Array, ""]]:
        """The terms of the loss, by name."""
        return label_losses(model(pixels, key).logits, labels, **self.config.task.loss)

    def pixels(self, images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w 3"]:
        """Images as the model sees them."""
        return inputs.normalise(images, self.config.data.mean, self.config.data.std)

    def evaluate(self, model: System, on: str = "test") -> dict[str, float]:
        """The scores of every test set in percent, "val/mAP" and so on: see `scores_of`.

        "validation" takes the sets of `config.validation` if there are any. A label that is in none
        of a set's images, or in none of a whole pass over the training data, is named in the log.
        """
        scores = {}
        for name, data in pipeline.evaluation_sets(self.config, on).items():
            scores |= self._scored(name, self.answers(model, data, f"testing on {name}"))
        self._tell_unseen()
        return scores

    def report(self, model: System) -> tuple[dict[str, float], dict[str, Report]]:
        """The scores of `evaluate` for the test sets, and a `Report` of each."""
        scores, reports = {}, {}
        for name, data in pipeline.evaluation_sets(self.config, "test").items():
            answers = self.answers(model, data, f"testing on {name}")
            scores |= self._scored(name, answers)
            reports[name] = self.report_of(answers, data)
        self._tell_unseen()
        return scores, reports

    def report_of(self, answers: Answers, data: Any) -> Report:
        """A closer look at one test set."""
        logits, targets, _ = answers.rows()
        probabilities = self.probabilities(logits)
        threshold = self.config.eval.threshold
        chosen = choose(probabilities, threshold=threshold)
        losses = label_reports.label_losses(logits, targets)
        return Report(
            rows=label_reports.label_rows(self.classes, probabilities, targets, chosen),
            by="AP",
            images=label_reports.label_images(self, data, answers, losses, threshold),
        )

    def _scored(self, name: str, answers: Answers) -> dict[str, float]:
        there = (answers.rows()[1] > 0).sum(axis=0)
        scores = {f"{name}/{metric}": x for metric, x in self.scores_of(answers).items()}
        self._unseen.tell(f"test set {name!r}", self.classes, there)
        return scores

    def _tell_unseen(self) -> None:
        if self._learned.records and self._learned.records >= len(self.source):
            self._unseen.tell("training images", self.classes, self._learned.totals)

    @functools.cached_property
    def _learned(self) -> LabelCounts:
        return LabelCounts("labels", len(self.classes))

    @functools.cached_property
    def _unseen(self) -> Unseen:
        return Unseen()

    def answers(self, model: System, data: Any, title: str = "testing") -> Answers:
        """Logits and labels of all images of a test set."""
        graph, state = nnx.split(model)
        tree = nnx.to_pure_dict(state)
        source = pipeline.make_source(data, image_labels.FIELDS, classes=self.classes)
        feed = image_labels.evaluation_feed(data)
        batches = pipeline.evaluation_batches(data, feed, source, self.config.eval.batch)
        answers = Answers()
        for batch in with_progress(batches, title):
            logits = self._jitted_logits(graph, tree, batch["image"])
            answers.add(np.asarray(logits), batch["labels"], batch.get("areas"), batch["valid"])
        return answers

    def scores_of(self, answers: Answers) -> dict[str, float]:
        """Average precision, and precision and recall at a probability of `eval.threshold`.

        Of the best three labels only the F1: see `vadapt.metrics.multilabel.label_scores`. And the
        average precision of every label, as "AP/dog".
        """
        logits, targets, areas = answers.rows()
        probabilities = self.probabilities(logits)
        scores = label_scores(probabilities, targets, areas, threshold=self.config.eval.threshold)
        found = {name: x for name, x in scores.items() if "_top" not in name or "F1" in name}
        each = 100 * average_precision(probabilities, targets)
        return found | {
            f"AP/{label}": float(x) for label, x in zip(self.classes, each, strict=True)
        }

    def probabilities(self, logits: Float[np.ndarray, "*b l"]) -> Float[np.ndarray, "*b l"]:
        """Of every label by itself."""
        return 1 / (1 + np.exp(-logits.astype(np.float64)))  # float32 would tie at 1

    def traced_probabilities(self, logits: Float[Array, "b l"]) -> Float[Array, "b l"]:
        """`probabilities` under `jax.jit`, in float32."""
        return jax.nn.sigmoid(logits)

    def export(self, model: System) -> nnx.Module:
        """Return what people keep: all of it; the adapter file holds what was trained."""
        return model

    def predict(
        self, model: System, images: UInt8[np.ndarray, "b h w c"]
    ) -> Float[np.ndarray, "b l"]:
        """Logits of images of the training size."""
        graph, state = nnx.split(model)
        return np.asarray(self._jitted_logits(graph, nnx.to_pure_dict(state), images))

    def predict_image(self, model: System, image: UInt8[np.ndarray, "h w c"]) -> Prediction:
        """The best labels, all from a probability of `eval.threshold` on; `pictures` show three.

        The image is resized as for testing. There are five labels at least, if the data have them.
        """
        seen = self.prepare_image(image)
        graph, state = nnx.split(model)
        found = self._jitted_predict(graph, nnx.to_pure_dict(state), seen[None])
        scores = self.probabilities(np.asarray(found.logits[0], np.float32))
        order = np.argsort(-scores, kind="stable")
        number = max(5, int((scores >= self.config.eval.get("threshold", 1.0)).sum()))
        labels = {self.classes[k]: float(scores[k]) for k in order[:number]}
        title = ", ".join(f"{label} {value:.0%}" for label, value in [*labels.items()][:3])
        row = [seen, *self._places(found, seen, 0, order[:3], model.strides)]
        sheet = contact_sheet([row], COLUMNS[: len(row)], [title], cell=256)
        return Prediction(pictures={"pictures": sheet}, labels=labels)

    def respond(
        self, model: System, images: UInt8[Array, "b h w c"]
    ) -> dict[str, Float[Array, "b l"]]:
        """`probabilities` of all labels, in the order of the classes."""
        seen = jax.vmap(self.prepare_image)(images)
        logits = model(self.pixels(seen)).logits.astype(jnp.float32)
        return {"probabilities": self.traced_probabilities(logits)}

    def prepare_image(self, image: UInt8[Any, "h w c"]) -> UInt8[Any, "_h _w c"]:
        """The image resized as for testing."""
        feed = image_labels.evaluation_feed(self.config.data)
        return apply_all(feed.transforms, {"image": image}, np.random.default_rng(0))["image"]

    def pictures(
        self, model: System, batch: dict[str, np.ndarray]
    ) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """The first images of a batch with their three best labels; a + marks those that are true.

        Heads whose labels choose places show those of each label beside the image.
        """
        number = min(self.config.eval.num_pictures, len(batch["image"]))
        graph, state = nnx.split(model)
        found = self._jitted_predict(graph, nnx.to_pure_dict(state), batch["image"][:number])
        rows, titles = [], []
        for i in range(number):
            logits = np.asarray(found.logits[i], np.float32)
            best = np.argsort(-logits, kind="stable")[:3]
            rows.append(
                [batch["image"][i], *self._places(found, batch["image"][i], i, best, model.strides)]
            )
            marks = ["+" if batch["labels"][i, label] > 0 else "-" for label in best]
            titles.append(
                ", ".join(f"{self.classes[k]} {m}" for k, m in zip(best, marks, strict=True))
            )
        return {"labels": contact_sheet(rows, COLUMNS[: len(rows[0])], titles, cell=128)}

    def _places(
        self, found: Any, image: np.ndarray, row: int, labels: Any, strides: tuple[int, ...]
    ) -> list[np.ndarray]:
        """For each label the image with the places that it took from.

        In the coarsest map of which a label cannot take more than half.
        """
        grids = [tuple(-(-side // stride) for side in image.shape[:2]) for stride in strides]
        for chosen, grid in zip(found.chosen[::-1], grids[::-1], strict=False):
            ids = np.asarray(chosen[row])
            if 2 * ids[:, 0].size <= grid[0] * grid[1]:
                return [draw_chosen(to_rgb(image), ids[:, label], grid) for label in labels]
        return []

    @functools.cached_property
    def _jitted_predict(self) -> Callable[..., Any]:
        def predict(graph: Any, tree: Any, images: Array) -> Any:
            return nnx.merge(graph, tree)(self.pixels(images))

        return jax.jit(predict, static_argnums=0)

    @functools.cached_property
    def _jitted_logits(self) -> Callable[..., Any]:
        def logits(graph: Any, tree: Any, images: Array) -> Array:
            return nnx.merge(graph, tree)(self.pixels(images)).logits

        return jax.jit(logits, static_argnums=0)


def warn_of_pixels(config: Any) -> None:
    """Say where the weights were trained on pixels that were normalized by other numbers.

    Recipes for pixels and for masked images take what their papers took, whatever the backbone.
    """
    data, weights = config.data, config.model.weights
    if weights and (own := models.other_statistics(weights, data.mean, data.std)):
        flags = f'--config.data.mean="{own.mean}" --config.data.std="{own.std}"'
        warnings.warn(
            f"config.data.mean and std are {data.mean} and {data.std}, but files beside "
            f"{weights!r} say that these weights were trained with {own.mean} and {own.std}; "
            f"scores depend on it. To take theirs: {flags}",
            stacklevel=3,
        )
