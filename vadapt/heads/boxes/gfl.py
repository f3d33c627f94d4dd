"""GFL: distributions of the distances to a box's sides, and scores that foresee its quality."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vadapt.boxes.anchors import AnchorGrid
from vadapt.boxes.assign import by_statistics
from vadapt.boxes.coders import decode_distances, encode_distances, expected_distances
from vadapt.boxes.geometry import ImageSizes, centers, iou
from vadapt.heads.boxes.dense import (
    RARE,
    STRIDES,
    DenseHead,
    Map,
    Predictions,
    Scale,
    output_conv,
)
from vadapt.losses import boxes as losses
from vadapt.partition import Head, mark


class GFL(DenseHead):
    """Classes of a cell, and a distribution of the distance to each of its box's four sides.

    Args:
        widths: channels of the maps, one a stride and all equal.
        width, depth, num_groups: of the two towers, see `DenseHead`.
        base_scale: side of a cell's anchor, by which ground truths are assigned, in strides.
        most: of the distances, in strides.
        nearest: of the assignment, see `boxes.assign.by_statistics`.
        beta: of the quality focal loss.
        class_weight, box_weight, distance_weight: of the terms.
        overlap: of detections, IoU above which they are the same.

    Source: arXiv:2006.04388, with mmdetection's settings.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        *,
        width: int = 256,
        depth: int = 4,
        num_groups: int | None = 32,
        strides: Sequence[int] = STRIDES,
        base_scale: float = 8.0,
        most: int = 16,
        nearest: int = 9,
        beta: float = 2.0,
        class_weight: float = 1.0,
        box_weight: float = 2.0,
        distance_weight: float = 0.25,
        overlap: float = 0.6,
        rngs: nnx.Rngs,
    ):
        grid = AnchorGrid(tuple(strides), (base_scale,), (1.0,))
        super().__init__(
            *(widths, num_classes, grid),
            width=width,
            depth=depth,
            num_groups=num_groups,
            overlap=overlap,
            rngs=rngs,
        )
        self.most, self.nearest, self.beta = most, nearest, beta
        self.class_weight, self.box_weight = class_weight, box_weight
        self.distance_weight = distance_weight
        self.gfl_cls = output_conv(self.tower_width, num_classes, bias=RARE, rngs=rngs)
        self.gfl_reg = output_conv(self.tower_width, 4 * (most + 1), rngs=rngs)
        self.scales = nnx.List([Scale() for _ in strides])
        mark(self, Head)

    def _outputs(self, level: int, by_class: Map, by_box: Map) -> tuple[Map, ...]:
        boxes = self.scales[level](self.gfl_reg(by_box).astype(jnp.float32))
        return self.gfl_cls(by_class).astype(jnp.float32), boxes

    def _decode(
        self, anchors: Float[Array, "b n 4"], codes: Float[Array, "b n c"], stride: int
    ) -> Float[Array, "b n 4"]:
        return decode_distances(centers(anchors), expected_distances(codes, self.most + 1) * stride)

    def _assign(
        self, levels: Sequence[Array], boxes: Array, valid: Array, among: Array
    ) -> Int[Array, " n"]:
        return by_statistics(levels, boxes, valid, among=among, nearest=self.nearest)

    def level_losses(
        self,
        predictions: Predictions,
        boxes: Float[Array, "b m 4"],
        classes: Int[Array, "b m"],
        valid: Bool[Array, "b m"],
        sizes: ImageSizes,
    ) -> dict[str, Float[Array, " l"]]:
        """Quality focal loss a positive anchor; the others weighted by its highest score."""
        found = self.targets(predictions, boxes, classes, valid, sizes)
        levels = self._anchors(predictions)
        strides = [
            jnp.full(len(level), float(stride))
            for level, stride in zip(levels, self.grid.strides, strict=True)
        ]
        stride = jnp.concatenate(strides)[None, :, None]
        points = centers(jnp.concatenate(levels))[None] / stride
        points = jnp.broadcast_to(points, (*found.rows.shape, 2))
        logits, given = self._joined(predictions.classes), self._joined(predictions.boxes)
        distances = expected_distances(given, self.most + 1)
        decoded, wanted = decode_distances(points, distances), found.boxes / stride
        quality, best = jax.lax.stop_gradient(
            (iou(decoded, wanted), jax.nn.sigmoid(logits).max(axis=-1))
        )
        weight = jnp.where(found.positive, best, 0.0)
        by_class = losses.quality_focal(
            logits, found.labels, jnp.where(found.positive, quality, 0.0), beta=self.beta
        )
        by_class = jnp.where(found.counts, by_class.sum(axis=-1), 0.0)
        by_box = weight * losses.giou_loss(decoded, wanted)
        sides = encode_distances(points, wanted, self.most)
        given = given.reshape(*sides.shape, self.most + 1)
        by_side = weight * losses.distribution_focal(given, sides).mean(axis=-1)

        average = functools.partial(self._averages, predictions)
        return {
            "loss_cls": average(by_class, found.number, self.class_weight),
            "loss_bbox": average(by_box, weight.sum(), self.box_weight),
            "loss_dfl": average(by_side, weight.sum(), self.distance_weight),
        }
