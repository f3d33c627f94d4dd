"""ViG's image classifier: the mean of the last map, and an MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from vadapt.backbones.graphs import LinearNorm
from vadapt.heads.linear import LabelPredictions
from vadapt.nn.activations import gelu_exact
from vadapt.nn.convolutions import FAN_IN
from vadapt.nn.drop import OptionalKey
from vadapt.partition import Head, mark


class ClassifierMlp(nnx.Module):
    """fc2(gelu(fc1(x))) with a batch norm in the first layer."""

    def __init__(self, width: int, num_classes: int, *, hidden: int = 1024, rngs: nnx.Rngs):
        self.fc1 = LinearNorm(width, hidden, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, num_classes, kernel_init=FAN_IN, rngs=rngs)
        mark(self, Head)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b k"]:
        return self.fc2(gelu_exact(self.fc1(x)))


class ClassifierLabels(nnx.Module):
    """The classifier as a head for labels of images; it reads the last map."""

    def __init__(
        self, widths: Sequence[int], num_labels: int, *, hidden: int = 1024, rngs: nnx.Rngs
    ):
        self.classifier = ClassifierMlp(widths[-1], num_labels, hidden=hidden, rngs=rngs)
        mark(self, Head)

    def __call__(
        self, maps: Sequence[Float[Array, "b _h _w _d"]], key: OptionalKey = None
    ) -> LabelPredictions:
        return LabelPredictions(self.classifier(maps[-1].mean(axis=(1, 2))))


class ViGClassifier(nnx.Module):
    """A backbone of stages and the classifier that ViG's ImageNet files have beside it.

    Source: Vision GNN, arXiv:2206.00272, released code.
    """

    def __init__(self, backbone: Any, num_classes: int, *, hidden: int = 1024, rngs: nnx.Rngs):
        self.backbone = backbone
        self.classifier = ClassifierMlp(backbone.widths[-1], num_classes, hidden=hidden, rngs=rngs)

    def __call__(
        self, images: Float[Array, "b h w c"], key: OptionalKey = None
    ) -> Float[Array, "b k"]:
        """Class logits; a key makes the call a training one."""
        return self.classifier(self.backbone(images, key=key).mean(axis=(1, 2)))
