"""RetinaNet: anchors of nine shapes a cell, matched by overlap, with the focal loss."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vadapt.boxes.anchors import AnchorGrid
from vadapt.boxes.assign import by_overlap
from vadapt.boxes.coders import DeltaCoder
from vadapt.boxes.geometry import ImageSizes
from vadapt.heads.boxes.dense import RARE, STRIDES, DenseHead, Map, Predictions, output_conv
from vadapt.losses import boxes as losses
from vadapt.partition import Head, mark


class RetinaNet(DenseHead):
    """Classes and shifts of nine anchors a cell.

    Args:
        widths: channels of the maps, one a stride and all equal.
        width, depth, num_groups: of the two towers, see `DenseHead`.
        base_scale, per_octave, ratios: of the anchors, see `AnchorGrid.octaves`; the smallest of
            the published ones are 32 px.
        means, stds: of the codes of boxes.
        positive, negative, least, tolerance: of the assignment, see `boxes.assign.by_overlap`.
        alpha, gamma: of the focal loss.
        class_weight, box_weight: of the terms.
        overlap: of detections, IoU above which they are the same.

    Source: arXiv:1708.02002, with mmdetection's settings.
    """

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        *,
        width: int = 256,
        depth: int = 4,
        num_groups: int | None = None,
        strides: Sequence[int] = STRIDES,
        base_scale: float = 4.0,
        per_octave: int = 3,
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        positive: float = 0.5,
        negative: float = 0.4,
        least: float = 0.0,
        tolerance: float = 0.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
        class_weight: float = 1.0,
        box_weight: float = 1.0,
        overlap: float = 0.5,
        rngs: nnx.Rngs,
    ):
        grid = AnchorGrid.octaves(strides, base=base_scale, per_octave=per_octave, ratios=ratios)
        super().__init__(
            *(widths, num_classes, grid),
            width=width,
            depth=depth,
            num_groups=num_groups,
            overlap=overlap,
            rngs=rngs,
        )
        self.coder = DeltaCoder(tuple(means), tuple(stds))
        self.positive, self.negative = positive, negative
        self.least, self.tolerance = least, tolerance
        self.alpha, self.gamma = alpha, gamma
        self.class_weight, self.box_weight = class_weight, box_weight
        inputs, cell = self.tower_width, grid.per_cell
        self.retina_cls = output_conv(inputs, cell * num_classes, bias=RARE, rngs=rngs)
        self.retina_reg = output_conv(inputs, cell * 4, rngs=rngs)
        mark(self, Head)

    def _outputs(self, level: int, by_class: Map, by_box: Map) -> tuple[Map, ...]:
        classes, boxes = self.retina_cls(by_class), self.retina_reg(by_box)
        return classes.astype(jnp.float32), boxes.astype(jnp.float32)

    def _assign(
        self, levels: Sequence[Array], boxes: Array, valid: Array, among: Array
    ) -> Int[Array, " n"]:
        return by_overlap(
            *(jnp.concatenate(list(levels)), boxes, valid),
            among=among,
            positive=self.positive,
            negative=self.negative,
            least=self.least,
            tolerance=self.tolerance,
        ).rows

    def level_losses(
        self,
        predictions: Predictions,
        boxes: Float[Array, "b m 4"],
        classes: Int[Array, "b m"],
        valid: Bool[Array, "b m"],
        sizes: ImageSizes,
    ) -> dict[str, Float[Array, " l"]]:
        """Focal loss of all that is not ignored, and L1 of positives' codes, a positive anchor."""
        found = self.targets(predictions, boxes, classes, valid, sizes)
        anchors = jnp.concatenate(self._anchors(predictions))[None]
        codes = self.coder.encode(jnp.broadcast_to(anchors, found.boxes.shape), found.boxes)
        logits, given = self._joined(predictions.classes), self._joined(predictions.boxes)
        by_class = losses.focal(logits, found.labels, alpha=self.alpha, gamma=self.gamma)
        by_class = jnp.where(found.counts, by_class.sum(axis=-1), 0.0)
        by_box = jnp.where(found.positive, losses.l1(given, codes).sum(axis=-1), 0.0)

        average = functools.partial(self._averages, predictions)
        return {
            "loss_cls": average(by_class, found.number, self.class_weight),
            "loss_bbox": average(by_box, found.number, self.box_weight),
        }
