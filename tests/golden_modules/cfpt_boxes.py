"""Golden cases of dense detectors: boxes and their losses."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.golden_modules.fields import Fields, only, same
from tests.golden_modules.pad_models import Arrays
from tests.golden_modules.programs import compiled
from vadapt.boxes import geometry
from vadapt.boxes.anchors import AnchorGrid
from vadapt.boxes.assign import BACKGROUND, by_overlap, by_statistics, covered
from vadapt.boxes.coders import (
    DeltaCoder,
    decode_distances,
    encode_distances,
    expected_distances,
)
from vadapt.boxes.nms import suppress
from vadapt.losses import boxes as losses

RETINA, ATSS = DeltaCoder(), DeltaCoder(stds=(0.1, 0.1, 0.2, 0.2))


def anchor_grid(config: Fields) -> AnchorGrid:
    """Anchors of a generator's settings."""
    only(config, type=("AnchorGenerator",))
    strides, ratios = config["strides"], config["ratios"]
    if "scales" in config:
        return AnchorGrid(tuple(strides), tuple(config["scales"]), tuple(ratios))
    base, per_octave = config["octave_base_scale"], config["scales_per_octave"]
    return AnchorGrid.octaves(strides, base=base, per_octave=per_octave, ratios=ratios)


def level_sizes(config: Fields) -> list[tuple[int, int]]:
    return [(rows, columns) for rows, columns in config["feat_sizes"]]


def codes(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    grid, sizes = anchor_grid(config["anchor_generator"]), level_sizes(config)
    outputs = {f"base{i}": grid.base(stride) for i, stride in enumerate(grid.strides)}
    outputs |= {f"anchors{i}": level for i, level in enumerate(grid.levels(sizes))}
    inside = grid.inside(sizes, jnp.asarray([config["pad_shape"]], jnp.int32))
    outputs |= {f"valid{i}": level[0] for i, level in enumerate(inside)}
    anchors, boxes = inputs["anchors"], inputs["gt"]
    size = jnp.asarray([config["clip_shape"]], jnp.float32)
    for name, coder in (("retina", RETINA), ("atss", ATSS)):
        outputs[f"encode_{name}"] = coder.encode(anchors, boxes)
        found = coder.decode(anchors, inputs[f"deltas_{name}"])
        outputs[f"decode_{name}"] = found
        outputs[f"decode_clip_{name}"] = geometry.clip(found, size)
    stride, points = config["dist_stride"], inputs["points"]
    outputs["dist_encode"] = encode_distances(points, boxes / stride, config["dist_max"])
    outputs["dist_decode"] = geometry.clip(
        decode_distances(points, inputs["dist"]), jnp.asarray([config["dist_clip_shape"]])
    )
    rows, columns = anchors[:12, None], boxes[None, :15]
    for name in ("iou", "giou", "iof"):
        outputs[name] = getattr(geometry, name)(rows, columns)
    return outputs


def one_based(rows: Any) -> Any:
    """vadapt's rows of ground truths as the original has them: 0 for none, -1 for ignored."""
    return jnp.where(rows >= 0, rows + 1, jnp.where(rows == BACKGROUND, 0, -1)).astype(jnp.int32)


def labels_of(rows: Any, labels: Any) -> Any:
    """Labels of assigned ground truths; -1 for none."""
    if not len(labels):
        return jnp.full_like(rows, -1)
    return jnp.where(rows >= 0, jnp.asarray(labels)[jnp.maximum(rows, 0)], -1).astype(jnp.int32)


def thresholds(config: Fields) -> dict[str, float]:
    names = {"positive": "pos", "negative": "neg", "least": "min_pos"}
    return {ours: config[theirs] for ours, theirs in names.items()}


def anchor_levels(config: Fields, inputs: Arrays) -> list[Any]:
    """The file's anchors, cut into the levels of the generator that its config names."""
    grid = anchor_grid(config["anchor_generator"])
    levels = grid.levels(level_sizes(config))
    if "num_level" in inputs and [len(x) for x in levels] != list(np.asarray(inputs["num_level"])):
        raise ValueError("num_level disagrees with feat_sizes and the generator")
    splits = np.cumsum([len(level) for level in levels])[:-1]
    return jnp.split(inputs["anchors"], splits)


def everything(boxes: Any) -> Any:
    return jnp.ones(len(boxes), bool)


def by_iou(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """Both assigners' settings stand in the files of either."""
    anchors = jnp.concatenate(anchor_levels(config, inputs))
    boxes, regions = inputs["gt"], inputs["gt_ignore"]
    only(config, kind=("maxiou",))
    config["atss_topk"]
    found = by_overlap(anchors, boxes, everything(boxes), **thresholds(config["maxiou"]))
    ignoring = config["maxiou_ign"]
    over = covered(anchors, regions, everything(regions), share=ignoring["ignore_iof_thr"])
    kept = by_overlap(anchors, boxes, everything(boxes), among=~over, **thresholds(ignoring))
    return {
        "maxiou_gt_inds": one_based(found.rows),
        "maxiou_overlaps": found.overlaps,
        "maxiou_labels": labels_of(found.rows, inputs["gt_labels"]),
        "maxiou_ign_gt_inds": one_based(kept.rows),
    }


def by_atss(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """Both assigners' settings stand in the files of either."""
    levels, boxes = anchor_levels(config, inputs), inputs["gt"]
    only(config, kind=("atss",))
    for other in (config["maxiou"], config["maxiou_ign"]):
        thresholds(other)
        other.get("ignore_iof_thr")
    rows = by_statistics(levels, boxes, everything(boxes), nearest=config["atss_topk"])
    labels = labels_of(rows, inputs["gt_labels"])
    return {"atss_gt_inds": one_based(rows), "atss_labels": labels}


def ties(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    anchors, boxes = jnp.concatenate(anchor_levels(config, inputs)), inputs["gt"]
    found = by_overlap(anchors, boxes, everything(boxes), **thresholds(config))
    return {"maxiou_gt_inds": one_based(found.rows), "maxiou_overlaps": found.overlaps}


def every_loss(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """Weighted sums over an average's factor, as the original reduces them."""
    logits, labels = inputs["logits"], inputs["labels"]
    same(config, N=len(logits), num_classes=logits.shape[1])
    same(config, reg_max=inputs["dist_logits"].shape[1] - 1)
    factor, weight = config["avg_factor"], inputs["label_weights"]
    found, target = inputs["pred_boxes"], inputs["target_boxes"]
    of_box, of_distance = inputs["box_weight"], inputs["dist_weight"]
    shifted = found.at[0].add(0.05)
    focal = losses.focal(
        logits, labels, alpha=config["focal"]["alpha"], gamma=config["focal"]["gamma"]
    )
    quality = losses.quality_focal(logits, labels, inputs["quality"], beta=config["qfl_beta"])
    distribution = losses.distribution_focal(inputs["dist_logits"], inputs["dist_target"])
    beta = config["smooth_l1_beta"]
    return {
        "focal": (focal * weight[:, None]).sum() / factor,
        "qfl": (quality.sum(axis=1) * weight).sum() / factor,
        "dfl": config["dfl_weight"] * (distribution * of_distance).sum()
        / config["dfl_avg_factor"],
        "giou": config["giou_weight"] * (losses.giou_loss(found, target) * of_box).sum() / factor,
        "iou_log": (losses.iou_loss(found, target) * of_box).sum() / factor,
        "l1": (losses.l1(shifted, target) * of_box[:, None]).sum() / factor,
        "smooth_l1": (losses.smooth_l1(shifted, target, beta=beta) * of_box[:, None]).sum()
        / factor,
        "integral": expected_distances(inputs["integral_logits"], config["reg_max"] + 1),
    }  # fmt: skip


def off_the_kink(name: str, array: np.ndarray) -> np.ndarray:
    """Boxes of row 0 are the same: losses have no gradient there."""
    counts = np.ones(array.shape, bool)
    if name.endswith("/pred_boxes"):
        counts[0] = False
    return counts


def nms(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    same(config, num_classes=inputs["scores"].shape[1])
    most = config["max_per_img"]
    found = suppress(
        inputs["boxes"],
        inputs["scores"],
        threshold=config["iou_threshold"],
        least=config["score_thr"],
        most=most,
    )
    flat = found.rows * config["num_classes"] + found.classes
    number = config["out_shapes"]["labels"][0]
    rows, labels = kept(found, number)
    return {"dets": rows, "labels": labels, "flat_index": flat[:number]}


def kept(found: Any, number: int) -> tuple[Any, Any]:
    """The detections as the original has them; NaN where their number is another."""
    right = found.valid.sum() == number
    rows = jnp.concatenate([found.boxes, found.scores[:, None]], axis=1)[:number]
    return jnp.where(right, rows, jnp.nan), jnp.where(right, found.classes[:number], -1)


_LOSSES = "losses: focal, QFL, DFL(+integral), GIoU, IoU(-log), L1, smooth L1"
MODULES = {
    "anchor grid, valid flags, delta and distance coders, IoU variants": compiled(codes),
    "label assigner maxiou": compiled(by_iou),
    "label assigner atss": compiled(by_atss),
    "MaxIoU assigner, exact ties": compiled(ties),
    _LOSSES: every_loss,
    "multi-class NMS (class-offset greedy)": compiled(nms),
}
COUNTS = {_LOSSES: off_the_kink}
