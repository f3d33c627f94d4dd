"""Recognition of the one label that an image has, with mixed images and smoothed targets."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from vadapt.metrics.multilabel import Answers, top_accuracy
from vadapt.system import System
from vadapt.tasks import label_reports
from vadapt.tasks.mixing import mix
from vadapt.tasks.multilabel import MultilabelTask
from vadapt.tasks.settings import CLASSIFICATION_FIELDS
from vadapt.training.report import Report


class ClassificationTask(MultilabelTask):
    """As `MultilabelTask`, with one label an image: softmax, and the best label counts.

    Reads from `config.task` also `mixup` and `cutmix` (see `mixing.mix`) and `smoothing`.
    """

    settings = CLASSIFICATION_FIELDS

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
