"""FSAF: cells in the middle of a box answer for it, on the level that has the smallest loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vadapt.boxes.anchors import AnchorGrid
from vadapt.boxes.assign import BACKGROUND, by_center
from vadapt.boxes.coders import TBLRCoder
from vadapt.boxes.geometry import EPSILON, ImageSizes
from vadapt.heads.boxes.dense import RARE, STRIDES, DenseHead, Map, Predictions, output_conv
from vadapt.losses import boxes as losses
from vadapt.micro_batches import batch_average
from vadapt.partition import Head, mark

LEAST = 1e-4  # of a distance in the loss, so that no box is without area
NOWHERE = 1e6  # the loss of a ground truth on a level that has no anchor for it


class Selected(NamedTuple):
    """Losses of anchors after every ground truth has chosen its level."""

    by_class: Float[Array, "b n"]
    by_box: Float[Array, "b n"]
    positive: Bool[Array, "b n"]  # on the chosen levels
    negative: Bool[Array, "b n"]


class FSAF(DenseHead):
    """Classes of a cell, and the distances to its box's sides; no anchor shapes.

    Args:
        widths: channels of the maps, one a stride and all equal.
        width, depth, num_groups: of the two towers, see `DenseHead`.
        base_scale: side of a cell, in strides.
        normalizer: of the codes of boxes, see `TBLRCoder`.
        core, shadow, least: of the assignment, see `boxes.assign.by_center`.
        alpha, gamma: of the focal loss.
        epsilon: what the loss of boxes takes an IoU for at least.
        class_weight, box_weight: of the terms.
        overlap: of detections, IoU above which they are the same.

    Source: arXiv:1903.00621, with mmdetection's settings.
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
        base_scale: float = 1.0,
        normalizer: float = 4.0,
        core: float = 0.2,
        shadow: float = 0.2,
        least: float = 0.01,
        alpha: float = 0.25,
        gamma: float = 2.0,
        epsilon: float = EPSILON,
        class_weight: float = 1.0,
        box_weight: float = 1.0,
        overlap: float = 0.5,
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
        self.coder = TBLRCoder(normalizer)
        self.core, self.shadow, self.least = core, shadow, least
        self.alpha, self.gamma, self.epsilon = alpha, gamma, epsilon
        self.class_weight, self.box_weight = class_weight, box_weight
        self.retina_cls = output_conv(self.tower_width, num_classes, bias=RARE, rngs=rngs)
        self.retina_reg = output_conv(self.tower_width, 4, bias=0.25, rngs=rngs)
        mark(self, Head)

    def _outputs(self, level: int, by_class: Map, by_box: Map) -> tuple[Map, ...]:
        boxes = jax.nn.relu(self.retina_reg(by_box).astype(jnp.float32))
        return self.retina_cls(by_class).astype(jnp.float32), boxes

    def selected(
        self,
        predictions: Predictions,
        boxes: Float[Array, "b m 4"],
        classes: Int[Array, "b m"],
        valid: Bool[Array, "b m"],
        sizes: ImageSizes,
    ) -> Selected:
        """Losses of anchors; those of levels that were not chosen are without what chose."""
        anchors = jnp.concatenate(self._anchors(predictions))
        among = self._among(predictions, sizes)

        def assign(boxes: Array, classes: Array, valid: Array, among: Array) -> tuple[Array, Array]:
            options = {"core": self.core, "shadow": self.shadow, "least": self.least}
            return by_center(
                anchors, boxes, classes, valid, self.num_classes, among=among, **options
            )

        boxes, classes = boxes.astype(jnp.float32), classes.astype(jnp.int32)
        rows, ignored = jax.vmap(assign)(boxes, classes, valid, among)
        found = self._targets(rows, boxes, classes, anchors)
        counts = found.counts[..., None] & ~ignored
        by_class = losses.focal(
            self._joined(predictions.classes), found.labels, alpha=self.alpha, gamma=self.gamma
        )
        by_class = self.class_weight * jnp.where(counts, by_class, 0.0)
        codes = jnp.maximum(self._joined(predictions.boxes), LEAST)
        whole = jnp.broadcast_to(anchors[None], codes.shape)
        by_box = losses.iou_loss(self.coder.decode(whole, codes), found.boxes, epsilon=self.epsilon)
        by_box = self.box_weight * jnp.where(found.positive, by_box, 0.0)
        chosen = self._chosen(predictions, by_class.sum(axis=-1) + by_box, rows, boxes.shape[1])
        positive = found.positive & chosen
        own = found.labels[..., None] == jnp.arange(self.num_classes)[None, None]
        lost = own & ~positive[..., None]
        return Selected(
            jnp.where(lost, 0.0, by_class).sum(axis=-1),
            jnp.where(positive, by_box, 0.0),
            positive,
            rows == BACKGROUND,
        )

    def _chosen(
        self, predictions: Predictions, losses: Array, rows: Array, slots: int
    ) -> Bool[Array, "b n"]:
        """Anchors on the level where the mean loss of their ground truth's is least."""
        sizes = [x.shape[1] * x.shape[2] for x in predictions.classes]
        level = jnp.asarray(np.repeat(np.arange(len(sizes)), sizes))

        def one(losses: Array, rows: Array) -> Array:
            place = level * (slots + 1) + jnp.where(rows >= 0, rows, slots)
            sums, numbers = (
                jnp.zeros(len(sizes) * (slots + 1)).at[place].add(x).reshape(len(sizes), -1)
                for x in (losses, jnp.ones_like(losses))
            )
            means = jnp.where(numbers > 0, sums / jnp.maximum(numbers, 1.0), NOWHERE)
            best = means.argmin(axis=0)
            return best[jnp.where(rows >= 0, rows, slots)] == level

        return jax.vmap(one)(jax.lax.stop_gradient(losses), rows)

    def level_losses(
        self,
        predictions: Predictions,
        boxes: Float[Array, "b m 4"],
        classes: Int[Array, "b m"],
        valid: Bool[Array, "b m"],
        sizes: ImageSizes,
    ) -> dict[str, Float[Array, " l"]]:
        """Both losses a positive anchor of the chosen levels, or a negative one if none is."""
        found = self.selected(predictions, boxes, classes, valid, sizes)
        negatives = jnp.maximum(found.negative.sum(axis=1), 1).sum()
        one = jnp.ones(())
        share = batch_average(one, found.positive.sum(), least=0.0)  # infinite if none is
        share = jnp.where(jnp.isinf(share), batch_average(one, negatives), share)
        return {
            "loss_cls": share * self._level_sums(predictions, found.by_class),
            "loss_bbox": share * self._level_sums(predictions, found.by_box),
        }
