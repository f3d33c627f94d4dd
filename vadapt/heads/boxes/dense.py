"""What dense heads share: towers, targets of anchors, sums by level, and detections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vadapt.boxes.anchors import AnchorGrid
from vadapt.boxes.assign import IGNORED
from vadapt.boxes.coders import DeltaCoder, TBLRCoder
from vadapt.boxes.geometry import ImageSizes, clip
from vadapt.boxes.nms import Detections, suppress
from vadapt.errors import ConfigError, ShapeError
from vadapt.micro_batches import batch_average
from vadapt.nn.drop import OptionalKey
from vadapt.nn.norms import GroupNorm

Map = Float[Array, "b _ _ _"]
Loss = dict[str, Float[Array, ""]]
STRIDES = (8, 16, 32, 64, 128)
NORMAL = nnx.initializers.normal(0.01)
_NONE = -1.0  # the score of a pair that is no detection
RARE = -math.log(99.0)  # the logit of 0.01, which classes score at first


class Predictions(NamedTuple):
    """Outputs of a dense head, level by level from the finest, in float32."""

    classes: tuple[Map, ...]  # logits; of each anchor of a cell, all classes
    boxes: tuple[Map, ...]  # codes; of each anchor of a cell, all its numbers
    centerness: tuple[Map, ...] = ()  # logits, of heads that have it


class Targets(NamedTuple):
    """What anchors answer for, of all levels in a row."""

    rows: Int[Array, "b n"]  # of ground truths, or as `boxes.assign` says
    labels: Int[Array, "b n"]  # the number of classes for background and what is ignored
    boxes: Float[Array, "b n 4"]  # of positive anchors; the anchor itself elsewhere

    @property
    def positive(self) -> Bool[Array, "b n"]:
        return self.rows >= 0

    @property
    def counts(self) -> Bool[Array, "b n"]:
        """Whether an anchor's classes count in the loss."""
        return self.rows != IGNORED

    @property
    def number(self) -> Int[Array, ""]:
        """Positive anchors of the batch; an image without any counts as one."""
        return jnp.maximum(self.positive.sum(axis=1), 1).sum()


class TowerConv(nnx.Module):
    """A 3x3 convolution, a group norm if asked, and ReLU."""

    def __init__(self, inputs: int, outputs: int, num_groups: int | None, *, rngs: nnx.Rngs):
        plain = num_groups is None
        self.conv = output_conv(inputs, outputs, use_bias=plain, rngs=rngs)
        self.norm = None if num_groups is None else GroupNorm(outputs, num_groups)

    def __call__(self, x: Map) -> Map:
        x = self.conv(x)
        return jax.nn.relu(x if self.norm is None else self.norm(x))


class Scale(nnx.Module):
    """A learned factor of a level's boxes."""

    def __init__(self):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x: Map) -> Map:
        return x * self.scale[...].astype(x.dtype)


def output_conv(
    inputs: int, outputs: int, *, bias: float = 0.0, use_bias: bool = True, rngs: nnx.Rngs
) -> nnx.Conv:
    """A 3x3 convolution that starts small, at this bias."""
    init = nnx.initializers.constant(bias)
    return nnx.Conv(
        *(inputs, outputs, (3, 3)),
        use_bias=use_bias,
        kernel_init=NORMAL,
        bias_init=init,
        rngs=rngs,
    )


class DenseHead(nnx.Module):
    """Two towers over every level, and what is made of what they predict.

    A head of this kind is called with maps, fine to coarse, and gives `Predictions`; it has
    `loss`, the terms by name, and `detect`. Ground truths are padded to one number of rows: boxes
    (x1, y1, x2, y2) in pixels, classes, and which rows are there. All of it is in static shapes.

    Args:
        widths: channels of the maps, which must be equal.
        width, depth: of the towers.
        num_groups: of group norms in the towers; None for convolutions with a bias alone.
        overlap: IoU above which `detect` takes boxes of a class for the same.

    Raises:
        ConfigError: maps of several widths, or another number of them than of strides.
    """

    coder: DeltaCoder | TBLRCoder  # of heads that do not decode by themselves

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        grid: AnchorGrid,
        *,
        width: int,
        depth: int,
        num_groups: int | None,
        overlap: float,
        rngs: nnx.Rngs,
    ):
        if len(set(widths)) != 1 or len(widths) != len(grid.strides):
            raise ConfigError(
                f"maps of widths {tuple(widths)} for strides {grid.strides}: a dense head takes "
                "one map a stride, all of one width; choose a neck that makes these, or strides"
            )
        self.num_classes, self.grid, self.overlap = num_classes, grid, overlap

        def tower() -> list[TowerConv]:
            inputs = [widths[0]] + [width] * (depth - 1)
            return [TowerConv(x, width, num_groups, rngs=rngs) for x in inputs[:depth]]

        self.cls_convs, self.reg_convs = nnx.List(tower()), nnx.List(tower())
        self.tower_width = width if depth else widths[0]

    def __call__(self, features: Sequence[Map], key: OptionalKey = None) -> Predictions:
        """Predictions for maps, fine to coarse.

        Args:
            key: of training, for which these heads have no use.

        Raises:
            ShapeError: another number of maps than of strides.
        """
        if len(features) != len(self.grid.strides):
            raise ShapeError(
                f"{len(features)} maps for a head of strides {self.grid.strides}; give one a stride"
            )
        found = []
        for level, x in enumerate(features):
            by_class = by_box = x
            for layer in self.cls_convs:
                by_class = layer(by_class)
            for layer in self.reg_convs:
                by_box = layer(by_box)
            found.append(self._outputs(level, by_class, by_box))
        return Predictions(*(tuple(maps) for maps in zip(*found, strict=True)))

    def loss(
        self,
        predictions: Predictions,
        boxes: Float[Array, "b m 4"],
        classes: Int[Array, "b m"],
        valid: Bool[Array, "b m"],
        sizes: ImageSizes,
    ) -> Loss:
        """The terms of the loss, to be summed; averages are over the whole batch of a step.

        Args:
            boxes, classes, valid: ground truths; of rows that are not valid nothing matters.
            sizes: anchors count that lie within an image's padding, `sizes.padded`.
        """
        terms = self.level_losses(predictions, boxes, classes, valid, sizes)
        return {name: by_level.sum() for name, by_level in terms.items()}

    def detect(
        self,
        predictions: Predictions,
        sizes: ImageSizes,
        *,
        scales: Float[Array, "b 2"] | None = None,
        before: int = 1000,
        least: float = 0.05,
        overlap: float | None = None,
        most: int = 500,
        by_pair: bool = False,
    ) -> Detections:
        """Boxes that are found, best first, within the real images.

        Args:
            scales: (x, y) by which images were resized, to give boxes of the images as they were.
            before: boxes of a level that suppression sees, those of the highest scores.
            least: scores of this or less are none.
            overlap: see the class; None for the head's own.
            most: number of detections of an image; the others are not valid.
            by_pair: the `before` best pairs of a box and a class of a level are taken, instead of
                the best boxes with all their classes.
        """
        logits = self._flat(predictions.classes)
        codes, factors = self._flat(predictions.boxes), self._factors(predictions)
        found = []
        for level, anchors in enumerate(self._anchors(predictions)):
            score = jax.nn.sigmoid(logits[level])
            rows, score = _best(jnp.where(score > least, score, _NONE), before, by_pair)
            if factors is not None:
                score = jnp.where(score > _NONE, score * _take(factors[level], rows), _NONE)
            anchors = jnp.broadcast_to(anchors[None], (len(rows), *anchors.shape))
            code, stride = _take(codes[level], rows), self.grid.strides[level]
            found.append((self._decode(_take(anchors, rows), code, stride), score))
        boxes, score = (jnp.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        boxes = clip(boxes, sizes.real[:, None])
        if scales is not None:
            boxes = boxes / jnp.concatenate([scales, scales], axis=-1)[:, None]
        overlap = self.overlap if overlap is None else overlap
        return suppress(boxes, score, threshold=overlap, least=_NONE, most=most)

    def level_losses(
        self,
        predictions: Predictions,
        boxes: Float[Array, "b m 4"],
        classes: Int[Array, "b m"],
        valid: Bool[Array, "b m"],
        sizes: ImageSizes,
    ) -> dict[str, Float[Array, " l"]]:
        """The terms of `loss`, each as what the levels have of it."""
        raise NotImplementedError

    def _outputs(self, level: int, by_class: Map, by_box: Map) -> tuple[Map, ...]:
        """A level's predictions from its two towers, in float32."""
        raise NotImplementedError

    def _decode(
        self, anchors: Float[Array, "b n 4"], codes: Float[Array, "b n c"], stride: int
    ) -> Float[Array, "b n 4"]:
        """Boxes in pixels of a level's codes; of a head with a `coder`, by that."""
        return self.coder.decode(anchors, codes)

    def _factors(self, predictions: Predictions) -> list[Float[Array, "b _ 1"]] | None:
        """What scores of a level's anchors are multiplied by after they were compared."""
        return None

    def _assign(
        self,
        levels: Sequence[Float[Array, "_ 4"]],
        boxes: Float[Array, "m 4"],
        valid: Bool[Array, " m"],
        among: Bool[Array, " n"],
    ) -> Int[Array, " n"]:
        """Rows of one image's ground truths for anchors, or as `boxes.assign` says."""
        raise NotImplementedError

    def targets(
        self,
        predictions: Predictions,
        boxes: Float[Array, "b m 4"],
        classes: Int[Array, "b m"],
        valid: Bool[Array, "b m"],
        sizes: ImageSizes,
    ) -> Targets:
        """What anchors answer for, by their places alone."""
        levels, among = self._anchors(predictions), self._among(predictions, sizes)

        def assign(boxes: Array, valid: Array, among: Array) -> Array:
            return self._assign(levels, boxes, valid, among)

        rows = jax.vmap(assign)(boxes.astype(jnp.float32), valid, among)
        return self._targets(rows, boxes, classes, jnp.concatenate(levels))

    def _targets(self, rows: Array, boxes: Array, classes: Array, anchors: Array) -> Targets:
        whole = jnp.broadcast_to(anchors[None], (*rows.shape, 4))
        if not boxes.shape[1]:
            return Targets(rows, jnp.full_like(rows, self.num_classes), whole)
        safe, positive = jnp.maximum(rows, 0), rows >= 0
        labels = jnp.take_along_axis(classes.astype(jnp.int32), safe, axis=1)
        own = jnp.take_along_axis(boxes.astype(jnp.float32), safe[..., None], axis=1)
        return Targets(
            rows,
            jnp.where(positive, labels, self.num_classes),
            jnp.where(positive[..., None], own, whole),
        )

    def _anchors(self, predictions: Predictions) -> list[Float[Array, "_ 4"]]:
        return self.grid.levels(_sizes(predictions))

    def _among(self, predictions: Predictions, sizes: ImageSizes) -> Bool[Array, "b n"]:
        """Anchors within the padding of their images."""
        return jnp.concatenate(self.grid.inside(_sizes(predictions), sizes.padded), axis=1)

    def _flat(self, maps: Sequence[Map]) -> list[Float[Array, "b _ _"]]:
        """Anchors of each level in a row, with all numbers of one."""
        per_cell = self.grid.per_cell
        return [
            x.reshape(len(x), x.shape[1] * x.shape[2] * per_cell, x.shape[3] // per_cell)
            for x in maps
        ]

    def _joined(self, maps: Sequence[Map]) -> Float[Array, "b n _"]:
        """Anchors of all levels in a row."""
        return jnp.concatenate(self._flat(maps), axis=1)

    def _averages(
        self,
        predictions: Predictions,
        values: Float[Array, "b n"],
        count: Array,
        factor: float,
    ) -> Float[Array, " l"]:
        """A term of the loss: what the levels have of values of anchors, over the batch's count."""
        return factor * batch_average(self._level_sums(predictions, values), count)

    def _level_sums(
        self, predictions: Predictions, values: Float[Array, "b n"]
    ) -> Float[Array, " l"]:
        """Sums over the batch of what anchors of all levels have."""
        ends = np.cumsum([h * w * self.grid.per_cell for h, w in _sizes(predictions)])
        return jnp.stack([part.sum() for part in jnp.split(values, ends[:-1], axis=1)])


def _sizes(predictions: Predictions) -> list[tuple[int, int]]:
    return [(x.shape[1], x.shape[2]) for x in predictions.classes]


def _take(x: Float[Array, "b n c"], rows: Int[Array, "b k"]) -> Float[Array, "b k c"]:
    return jnp.take_along_axis(x, rows[..., None], axis=1)


def _best(
    scores: Float[Array, "b n k"], before: int, by_pair: bool
) -> tuple[Int[Array, "b r"], Float[Array, "b r k"]]:
    """The rows of the best boxes, and their scores; or of the best pairs of a box and a class."""
    b, n, num_classes = scores.shape
    if by_pair:
        best, pairs = jax.lax.top_k(scores.reshape(b, -1), min(before, n * num_classes))
        alone = (pairs % num_classes)[..., None] == jnp.arange(num_classes)[None, None]
        return pairs // num_classes, jnp.where(alone, best[..., None], _NONE)
    if n <= before:
        return jnp.broadcast_to(jnp.arange(n)[None], (b, n)), scores
    _, rows = jax.lax.top_k(scores.max(axis=-1), before)
    return rows, _take(scores, rows)
