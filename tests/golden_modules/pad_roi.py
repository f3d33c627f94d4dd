"""Golden cases of PAD's crops around objects: candidates and the boxes drawn around them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.golden_modules.fields import Fields, only
from vadapt.data.roi_crop import RoiDraws, RoiRules, roi_crop_box
from vadapt.data.selective_search import SearchSettings, group, keep_candidates, segment
from vadapt.data.transforms import random_resized_crop_box

Arrays = dict[str, Any]


def candidates(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    # What made the first regions; vadapt calls it, too, where a file does not hold them.
    only(config, felzenszwalb=("scikit-image 0.26.0",))
    names = ("scale", "sigma", "min_size", "min_area", "min_side", "max_aspect")
    settings = SearchSettings(**{name: config[name] for name in names if name in config})
    grey = np.asarray(inputs["img"])
    if "initial_labels" in inputs:
        labels = np.asarray(inputs["initial_labels"])
    else:
        labels = segment(grey, settings)
    regions = group(labels, grey)
    return {
        "candidates": keep_candidates(regions, settings),
        "region_rect": regions.boxes_xywh,
        "region_size": regions.sizes,
    }


class Replay(np.random.Generator):
    """Gives stored numbers where `random_resized_crop_box` draws."""

    def __init__(self, area: np.ndarray, log_ratio: np.ndarray, rows: np.ndarray, cols: np.ndarray):
        super().__init__(np.random.PCG64(0))
        # The original takes the exponential in float32; ours, in float64, has to meet that value.
        log_ratio = np.log(np.exp(log_ratio.astype(np.float32)).astype(np.float64))
        self.uniforms = iter(np.stack([area.astype(np.float64), log_ratio], 1).ravel().tolist())
        self.offsets = [rows.tolist(), cols.tolist()]
        self.attempt, self.axis = -0.5, 0

    def uniform(self, low: float, high: float) -> float:
        self.attempt += 0.5
        return next(self.uniforms)

    def integers(self, count: int) -> int:
        share = self.offsets[self.axis][int(self.attempt)]
        self.axis += 1
        return math.floor(share * count)


def crop_box(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    given = {name: np.asarray(value) for name, value in inputs.items()}
    boxes, fallbacks, tries = [], [], []
    anywhere = {
        "area": tuple(config["rrc_scale"]),
        "aspect": tuple(config["rrc_ratio"]),
        "attempts": config["max_rrc_tries"],
    }
    for row in range(len(given["width"])):
        scene = {name: value[row] for name, value in given.items()}
        rules = RoiRules(
            probability=config["p"],
            min_side=config["min_size"],
            min_candidate_side=config["min_roi_side"],
            large_share=config["large_min_area_ratio"],
            randomise=bool(scene["random"]),
        )
        attempts = config["max_roi_tries"]
        draws = RoiDraws(
            float(scene["u_large"]),
            scene["roi_index"][:attempts],
            np.stack([scene["dx"], scene["dy"]], 1).astype(np.float64)[:attempts],
            np.stack([scene["sw"], scene["sh"]], 1).astype(np.float64)[:attempts],
        )
        height, width = int(scene["height"]), int(scene["width"])
        box, used = roi_crop_box(height, width, scene["rois"][: scene["n_rois"]], draws, rules)
        fallbacks.append(box is None)
        tries.append(used)
        if box is None:
            replay = Replay(*(scene[f"rrc_{name}"] for name in ("area", "logratio", "iu", "ju")))
            box = random_resized_crop_box(height, width, replay, **anywhere)
        boxes.append(box)
    return {"box": np.array(boxes), "fallback": np.array(fallbacks), "roi_tries": np.array(tries)}


MODULES = {
    "RoI candidates (selective search)": candidates,
    "RandomRoiCrop (crop box)": crop_box,
}
