"""Recognition of the one label that an image has, with mixed images and smoothed targets."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Key, UInt8

from vadapt.data import pipeline
from vadapt.metrics.multilabel import Answers, top_accuracy
from vadapt.system import System
from vadapt.tasks import image_features, image_labels, label_reports
from vadapt.tasks.mixing import mix
from vadapt.tasks.multilabel import MultilabelTask
from vadapt.tasks.settings import CLASSIFICATION_FIELDS
from vadapt.training.report import Report


class ClassificationTask(MultilabelTask):
    """As `MultilabelTask`, with one label an image: softmax, and the best label counts.

    Reads from `config.task` also `mixup` and `cutmix` (see `mixing.mix`) and `smoothing`, and from
    `config.eval` also `features`: what else reads classes from the features of the training images,
    without training; see `image_features.READERS`. With it, a run of no steps, whose head is as
    random as it was made, leaves that head's scores out.
    """

    settings = CLASSIFICATION_FIELDS

    def __init__(self, config: Any):
        super().__init__(config)
        self._readers = image_features.check_names(config.eval.get("features", ()))

    def evaluate(self, model: System, on: str = "test") -> dict[str, float]:
        """The scores of every test set in percent: "val/top1", "val/knn", "val/knn_top5", ..."""
        scores = super().evaluate(model, on) if self._head_knows else {}
        return scores | self._read_features(model, on)

    def report(self, model: System) -> tuple[dict[str, float], dict[str, Report]]:
        """The scores of `evaluate` for the test sets, and a `Report` of what the head says."""
        scores, reports = super().report(model) if self._head_knows else ({}, {})
        return scores | self._read_features(model, "test"), reports

    @property
    def _head_knows(self) -> bool:
        """Whether the head was trained, or loaded; or nothing else has scores."""
        config = self.config
        return bool(config.total_steps or config.task.load_head or not self._readers)

    def _read_features(self, model: System, on: str) -> dict[str, float]:
        """Top-1 and top-5 of what `config.eval.features` names, of every test set."""
        config, scores = self.config, {}
        if not self._readers:
            return scores
        seen = functools.partial(image_features.side_of, self._jitted_embed, model, config)
        train = seen(config.data, self.source, "features of training images")
        tests = {}
        for name, data in pipeline.evaluation_sets(config, on).items():
            source = pipeline.make_source(data, image_labels.FIELDS, classes=self.classes)
            tests[name] = seen(data, source, f"features of {name}")
        for reader in self._readers:
            read = image_features.READERS[reader](train)
            for name, test in tests.items():
                found = read(test.features)
                scores[f"{name}/{reader}"] = top_accuracy(found, test.targets)
                scores[f"{name}/{reader}_top5"] = top_accuracy(found, test.targets, 5)
        return scores

    def embed(
        self, model: System, images: UInt8[np.ndarray, "b h w c"]
    ) -> Float[np.ndarray, "b d"]:
        """What images of the training size are compared by, see `System.embed`; in float32."""
        graph, state = nnx.split(model)
        found = self._jitted_embed(graph, nnx.to_pure_dict(state), images)
        return np.asarray(found, np.float32)

    @functools.cached_property
    def _jitted_embed(self) -> image_features.Embed:
        def embed(graph: Any, tree: Any, images: Array) -> Array:
            return nnx.merge(graph, tree).embed(self.pixels(images))

        return jax.jit(embed, static_argnums=0)

    def terms(
        self, model: System, pixels: Array, labels: Array, key: Key[Array, ""]
    ) -> dict[str, Float[Array, ""]]:
        """Mean cross entropy of the batch."""
        settings = self.config.task
        mix_key, model_key = jax.random.split(key)
        targets = optax.smooth_labels(labels.astype(jnp.float32), settings.smoothing)
        pixels, targets = mix(
            mix_key, pixels, targets, mixup=settings.mixup, cutmix=settings.cutmix
        )
        logits = model(pixels, model_key).logits.astype(jnp.float32)
        return {"loss_ce": optax.softmax_cross_entropy(logits, targets).mean()}

    def probabilities(self, logits: Float[np.ndarray, "*b l"]) -> Float[np.ndarray, "*b l"]:
        """Of every label, the only one of its image."""
        scores = logits.astype(np.float64)
        odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return odds / odds.sum(axis=-1, keepdims=True)

    def traced_probabilities(self, logits: Float[Array, "b l"]) -> Float[Array, "b l"]:
        """`probabilities` under `jax.jit`, in float32."""
        return jax.nn.softmax(logits)

    def scores_of(self, answers: Answers) -> dict[str, Any]:
        """The share of images whose label is the best one, and among the best five."""
        scores, targets, _ = answers.rows()
        return {f"top{number}": top_accuracy(scores, targets, number) for number in (1, 5)}

    def report_of(self, answers: Answers, data: Any) -> Report:
        """A closer look at one test set."""
        logits, targets, _ = answers.rows()
        confusion = label_reports.class_confusion(logits, targets)
        losses = label_reports.class_losses(logits, targets)
        return Report(
            rows=label_reports.class_rows(self.classes, confusion),
            by="accuracy",
            confusion=confusion,
            images=label_reports.label_images(self, data, answers, losses, threshold=2.0),
        )
