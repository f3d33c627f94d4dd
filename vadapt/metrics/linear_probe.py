"""A linear probe: how much a linear classifier reads out of frozen features."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from vadapt.metrics.segmentation import best_class, confusion_matrix, iou_per_class, mean_iou


def patch_labels(
    mask: Int[np.ndarray, "b h w"], patch_size: int, num_classes: int
) -> Int[np.ndarray, "b gh gw"]:
    """The most frequent class of every patch; of equals the lower id; ignored pixels don't vote."""
    b, h, w = mask.shape
    p = patch_size
    patches = mask.reshape(b, h // p, p, w // p, p).swapaxes(2, 3).reshape(b, h // p, w // p, p * p)
    votes = np.stack([(patches == k).sum(-1) for k in range(num_classes)], axis=-1)
    return np.where(votes.sum(-1) > 0, votes.argmax(-1), 255)


class Probe(NamedTuple):
    """A fitted classifier, and the statistics by which it standardizes features."""

    mean: Float[np.ndarray, " d"]
    std: Float[np.ndarray, " d"]
    weights: dict[str, Array]

    def confusion(
        self, features: Float[np.ndarray, "m d"], labels: Int[np.ndarray, " m"]
    ) -> Int[np.ndarray, "k k+1"]:
        """The confusion matrix of test features; labels of 255 are ignored."""
        logits = _logits(self.weights, jnp.asarray((features - self.mean) / self.std))
        truth, classes = jnp.asarray(labels, jnp.int32), self.weights["bias"].shape[0]
        return np.asarray(confusion_matrix(best_class(logits), truth, classes))


def fit_probe(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    num_classes: int,
    weight_decay: float = 1e-4,
    steps: int = 60,
) -> Probe:
    """A multinomial logistic regression.

    Features are standardized by the training set's statistics; the fit is L-BFGS on the whole
    set from zero, so that the score depends on nothing random. Labels of 255 are ignored.
    """
    mean, std = features.mean(0), features.std(0) + 1e-6
    standard, truth = jnp.asarray((features - mean) / std), jnp.asarray(labels, jnp.int32)
    return Probe(mean, std, _fit(standard, truth, num_classes, weight_decay, steps))


def probe_confusion(
    train_features: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, " n"],
    test_features: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, " m"],
    *,
    num_classes: int,
    weight_decay: float = 1e-4,
    steps: int = 60,
) -> Int[np.ndarray, "k k+1"]:
    """The confusion matrix of test features under the probe that `fit_probe` fits."""
    options = {"num_classes": num_classes, "weight_decay": weight_decay, "steps": steps}
    return fit_probe(train_features, train_labels, **options).confusion(test_features, test_labels)


def probe_scores(confusion: Int[np.ndarray, "k k+1"]) -> dict[str, float]:
    """`miou` and `accuracy` of a confusion matrix in [0, 1], and how many `classes` it has."""
    return {
        "miou": mean_iou(confusion),
        "accuracy": float(np.diag(confusion).sum() / max(confusion.sum(), 1)),
        "classes": float(np.isfinite(iou_per_class(confusion)).sum()),
    }


def _logits(weights: dict[str, Array], features: Float[Array, "n d"]) -> Float[Array, "n k"]:
    return features @ weights["kernel"] + weights["bias"][None]


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _fit(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    num_classes: int,
    weight_decay: float,
    steps: int,
) -> Any:
    valid = (labels < num_classes).astype(jnp.float32)

    def loss(weights: dict[str, Array]) -> Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(
            _logits(weights, features), jnp.minimum(labels, num_classes - 1)
        )
        penalty = weight_decay * jnp.square(weights["kernel"]).sum()
        return (losses * valid).sum() / jnp.maximum(valid.sum(), 1.0) + penalty

    optimizer = optax.lbfgs()
    weights = {
        "kernel": jnp.zeros((features.shape[1], num_classes)),
        "bias": jnp.zeros((num_classes,)),
    }

    def step(carry, _):
        weights, state = carry
        value, gradient = optax.value_and_grad_from_state(loss)(weights, state=state)
        updates, state = optimizer.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=loss
        )
        return (optax.apply_updates(weights, updates), state), value

    (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), None, length=steps)
    return weights
