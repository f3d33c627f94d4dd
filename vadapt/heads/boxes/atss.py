"""ATSS: one anchor a cell, assigned by statistics of overlaps, and the centerness of boxes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vadapt.boxes.anchors import AnchorGrid
from vadapt.boxes.assign import by_statistics
from vadapt.boxes.coders import DeltaCoder, encode_distances
from vadapt.boxes.geometry import ImageSizes, centers
from vadapt.heads.boxes.dense import (
    RARE,
    STRIDES,
    DenseHead,
    Map,
    Predictions,
    Scale,
    Targets,
    output_conv,
)
from vadapt.losses import boxes as losses
from vadapt.partition import Head, mark


class ATSS(DenseHead):
    """Classes, shifts and centerness of one anchor a cell.

    Args:
        widths: channels of the maps, one a stride and all equal.
        width, depth, num_groups: of the two towers, see `DenseHead`.
        base_scale: side of a cell's anchor, in strides.
        means, stds: of the codes of boxes.
        nearest: of the assignment, see `boxes.assign.by_statistics`.
        alpha, gamma: of the focal loss.
        class_weight, box_weight, centerness_weight: of the terms.
        overlap: of detections, IoU above which they are the same.
        by_centerness: detections of equal class scores go by their centerness, too, as in the
            paper and mmdetection; CFPT's code leaves it out.

    Source: arXiv:1912.02424, with mmdetection's settings.
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
        means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        stds: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
        nearest: int = 9,
        alpha: float = 0.25,
        gamma: float = 2.0,
        class_weight: float = 1.0,
        box_weight: float = 2.0,
        centerness_weight: float = 1.0,
        overlap: float = 0.6,
        by_centerness: bool = False,
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
        self.coder = DeltaCoder(tuple(means), tuple(stds))
        self.nearest, self.by_centerness = nearest, by_centerness
        self.alpha, self.gamma = alpha, gamma
        self.class_weight, self.box_weight = class_weight, box_weight
        self.centerness_weight = centerness_weight
        self.atss_cls = output_conv(self.tower_width, num_classes, bias=RARE, rngs=rngs)
        self.atss_reg = output_conv(self.tower_width, 4, rngs=rngs)
        self.atss_centerness = output_conv(self.tower_width, 1, rngs=rngs)
        self.scales = nnx.List([Scale() for _ in strides])
        mark(self, Head)

    def _outputs(self, level: int, by_class: Map, by_box: Map) -> tuple[Map, ...]:
        boxes = self.scales[level](self.atss_reg(by_box).astype(jnp.float32))
        centerness = self.atss_centerness(by_box).astype(jnp.float32)
        return self.atss_cls(by_class).astype(jnp.float32), boxes, centerness

    def _factors(self, predictions: Predictions) -> list[Float[Array, "b _ 1"]] | None:
        if not self.by_centerness:
            return None
        return [jax.nn.sigmoid(x) for x in self._flat(predictions.centerness)]

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
        """Focal loss and centerness a positive anchor; GIoU weighted by its centerness."""
        found = self.targets(predictions, boxes, classes, valid, sizes)
        anchors = jnp.concatenate(self._anchors(predictions))[None]
        anchors = jnp.broadcast_to(anchors, found.boxes.shape)
        decoded = self.coder.decode(anchors, self._joined(predictions.boxes))
        middle = centerness(found, centers(anchors))
        by_class = losses.focal(
            self._joined(predictions.classes), found.labels, alpha=self.alpha, gamma=self.gamma
        )
        by_class = jnp.where(found.counts, by_class.sum(axis=-1), 0.0)
        by_box = middle * losses.giou_loss(decoded, found.boxes)
        logits = self._joined(predictions.centerness)[..., 0]
        by_middle = losses.binary_cross_entropy(logits, middle)
        by_middle = jnp.where(found.positive, by_middle, 0.0)

        average = functools.partial(self._averages, predictions)
        return {
            "loss_cls": average(by_class, found.number, self.class_weight),
            "loss_bbox": average(by_box, middle.sum(), self.box_weight),
            "loss_centerness": average(by_middle, found.number, self.centerness_weight),
        }


def centerness(found: Targets, points: Float[Array, "b n 2"]) -> Float[Array, "b n"]:
    """How central points are in their boxes, 0 to 1; 0 of what is not positive.

    Source: FCOS, arXiv:1904.01355, equation 3.
    """
    sides = encode_distances(points, found.boxes)
    left, top, right, bottom = jnp.moveaxis(jnp.where(found.positive[..., None], sides, 1.0), -1, 0)
    across = jnp.minimum(left, right) / jnp.maximum(left, right)
    down = jnp.minimum(top, bottom) / jnp.maximum(top, bottom)
    return jnp.where(found.positive, jnp.sqrt(across * down), 0.0)
