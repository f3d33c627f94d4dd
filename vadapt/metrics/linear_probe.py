"""A linear probe: how much a linear classifier reads out of frozen features."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from vadapt.metrics.segmentation import best_class, confusion_matrix, iou_per_class, mean_iou

DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # that `fit_chosen_probe` chooses from
_HELD_OUT = 5  # of so many images of a class, one


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

    def logits(self, features: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m k"]:
        """The scores of all classes, before the softmax."""
        standard = jnp.asarray((features - self.mean) / self.std)
        return np.asarray(_logits(self.weights, standard))

    def confusion(
        self, features: Float[np.ndarray, "m d"], labels: Int[np.ndarray, " m"]
    ) -> Int[np.ndarray, "k k+1"]:
        """The confusion matrix of test features; labels of 255 are ignored."""
        logits = jnp.asarray(self.logits(features))
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
    set from zero, so that the score depends on nothing random. Labels from `num_classes` on, such
    as 255, are ignored.
    """
    mean, std = features.mean(0), features.std(0) + 1e-6
    standard, truth = jnp.asarray((features - mean) / std), jnp.asarray(labels, jnp.int32)
    return Probe(mean, std, _fit(standard, truth, num_classes, weight_decay, steps))


def fit_chosen_probe(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], *, num_classes: int
) -> tuple[Probe, float]:
    """`fit_probe` with the weight decay that does best on held-out images, and that decay.

    It is one of 0.1, 0.01, 0.001, 1e-4 and 1e-5, the largest of equally good ones. Every fifth
    image of a class is held out to choose by, of a class with two to four the last one; where no
    class has two, none is, and the decay is 1e-4. The probe returned is fitted on all images.
    """
    held = _held_out(labels, num_classes)
    decay = 1e-4
    if held.any():
        kept = np.where(held, num_classes, labels)  # ignored: of one shape, compiled once
        shares = []
        for each in DECAYS:
            probe = fit_probe(features, kept, num_classes=num_classes, weight_decay=each)
            shares.append((probe.logits(features[held]).argmax(1) == labels[held]).mean())
        decay = DECAYS[int(np.argmax(shares))]
    return fit_probe(features, labels, num_classes=num_classes, weight_decay=decay), decay


def _held_out(labels: Int[np.ndarray, " n"], num_classes: int) -> Bool[np.ndarray, " n"]:
    """Which images choose the weight decay; see `fit_chosen_probe`."""
    held = np.zeros(len(labels), bool)
    for number in range(num_classes):
        members = np.flatnonzero(labels == number)
        every = min(_HELD_OUT, len(members))
        if every > 1:
            held[members[every - 1 :: every]] = True
    return held


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


@functools.partial(jax.jit, static_argnums=(2, 4))
def _fit(
    features: Float[Array, "n d"],
    labels: Int[Array, " n"],
    num_classes: int,
    weight_decay: Float[Array, ""] | float,
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
