"""Golden cases of CFPT around the network: how boxes are scored, cut and chosen."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tests.golden_modules.fields import Fields
from vadapt.data.annotated import Annotated
from vadapt.data.detection import RULES
from vadapt.data.tiling import boxes_in_tile, keep_by_side, tile_corners
from vadapt.metrics import aerial
from vadapt.metrics.detection import (
    COCO,
    Curves,
    Found,
    Rules,
    Truth,
    class_precision,
    coco_scores,
    detection_curves,
)

Arrays = dict[str, Any]


def corners(xywh: np.ndarray) -> np.ndarray:
    xywh = xywh.astype(np.float64)
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)


def absent(values: Any) -> np.ndarray:
    """The originals' -1 where no object counts."""
    return np.nan_to_num(np.asarray(values, np.float64), nan=-1.0)


def curves_of(
    config: Fields, inputs: Arrays, num_classes: int, rules: Rules, flags: tuple[int, ...] = ()
) -> Curves:
    """Curves of rows that begin with image, category, x, y, w, h.

    Args:
        flags: columns of objects that are ignored.
    """
    there, found = (np.asarray(inputs[name]) for name in ("gt", "dt"))
    for rows in (there, found):
        outside = (rows[:, 0] < 1) | (rows[:, 0] > config["num_images"])
        if outside.any():
            raise ValueError(f"images {rows[outside, 0]} of {config['num_images']}")
    truth = Truth(
        there[:, 0].astype(np.int64),
        there[:, 1].astype(np.int64) - 1,
        corners(there[:, 2:6]),
        there[:, 6].astype(np.float64),
        there[:, 7] > 0,
        (there[:, [*flags]] > 0).any(1),
    )
    detections = Found(
        found[:, 0].astype(np.int64),
        found[:, 1].astype(np.int64) - 1,
        corners(found[:, 2:6]),
        found[:, 6],
    )
    return detection_curves(detections, truth, num_classes, rules)


def coco_eval(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    rules = dataclasses.replace(COCO, max_dets=tuple(config["max_dets"]))
    curves = curves_of(config, inputs, config["num_classes"], rules)
    scores = coco_scores(curves, rules)
    return {
        "stats": absent([value / 100 for value in scores.values()]),
        "per_class_ap": absent(class_precision(curves, rules)),
        "precision": absent(curves.precision[..., 0]),
        "recall": absent(curves.recall[:, :, 0, -1]),
    }


def tiny_eval(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    shares = {
        "lambda iou: iou": aerial.same_share,
        "lambda iou: (2*iou)/(1+iou)": aerial.doubled_share,
    }
    share = shares[config["iod_threshold"]]
    sides = zip(config["areas"], config["area_edges"], strict=True)
    rules = Rules(
        ious=tuple(config["iou_thrs"]),
        areas={name: (low**2, high**2) for name, (low, high) in sides},
        max_dets=(config["max_det"],),
        ignored_share=share if config["use_iod_for_ignore"] else None,
    )
    flags = (8, 9) if config["ignore_uncertain"] else (8,)
    curves = curves_of(config, inputs, 1, rules, flags)
    return {
        "ap": absent(curves.precision[:, :, 0].mean(1)),
        "ar": absent(curves.recall[:, 0, :, -1]),
        "precision": absent(curves.precision[:, :, 0]),
    }


def tiles(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """Corners of all cases, and the boxes in the tiles of the first."""
    outputs: Arrays = {}
    for number, case in enumerate(config["cases"]):
        image, tile, overlap = (tuple(case[name][::-1]) for name in ("image", "tile", "overlap"))
        corners = tile_corners(image, tile, overlap, fixed=config["fixed_size"])
        rows = len(np.unique(corners[:, 1]))
        if [rows, len(corners) // rows] != case["grid"]:
            raise ValueError(f"the config has a grid of {case['grid']}, the corners {corners}")
        outputs[f"corners{number}"] = corners
    rule = keep_by_side(config["keep_overlap"])
    for number, corner in enumerate(outputs["corners0"]):
        boxes, kept = boxes_in_tile(np.asarray(inputs["boxes"]), corner, rule)
        outputs[f"boxes_tile{number}"], outputs[f"keep_tile{number}"] = boxes, kept
    return outputs


def visdrone_parse(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """Rows of x, y, w, h, area, category, ignore, iscrowd, by the rule of VisDrone's recipe."""
    rows = np.asarray(inputs["anns"])
    places = {number: place for place, number in enumerate(config["category_ids"])}
    rows = rows[[int(number) in places for number in rows[:, 5]]]
    image = Annotated(
        "",
        (config["height"], config["width"]),
        corners(rows[:, :4]),
        np.array([places[int(number)] for number in rows[:, 5]], np.int32),
        rows[:, 4].astype(np.float64),
        rows[:, 7] > 0,
        rows[:, 6] > 0,
    )
    kept = RULES["visdrone"](image)
    objects = kept.rows(~(kept.crowds | kept.ignored))
    return {
        "bboxes": objects.boxes_xyxy,
        "labels": objects.classes,
        "bboxes_ignore": kept.rows(kept.crowds & ~kept.ignored).boxes_xyxy,
    }


MODULES = {
    "COCO box AP/AR": coco_eval,
    "TinyPerson AP": tiny_eval,
    "VisDrone training annotation filter": visdrone_parse,
    "tiling: tile corners and box assignment": tiles,
}
