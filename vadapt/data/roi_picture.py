"""A picture of candidates and of the crops drawn around them: see `vadapt.data.roi_candidates`."""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, UInt8

from vadapt import drawing
from vadapt.data.kinds import Box
from vadapt.data.msip import Msip
from vadapt.data.roi_crop import RandomRoiCrop, RoiRules, draw_roi, roi_crop_box
from vadapt.data.scenes import SceneOptions, Scenes
from vadapt.data.selective_search import SearchSettings, find_candidates
from vadapt.data.transforms import crop_and_resize, random_resized_crop_box

SCENE_SIDE = 256
_USUAL_SIDE = 512  # of the images that the published numbers of pixels are for
_SMALL, _LARGE, _ANYWHERE = (240, 170, 40), (70, 200, 120), (225, 70, 70)
_NUM_CROPS, _NUM_SHOWN = 12, 4


def draw(
    path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None,
    settings: SearchSettings,
    *,
    count: int = 6,
    seed: int = 0,
) -> None:
    """Writes a sheet: image, candidates, boxes of crops, and some of the crops.

    Args:
        root: of an MSIP tree, whose stored candidates are shown where there are any; None draws
            infrared scenes of 256 pixels, with all sizes in pixels halved.
    """
    rng = np.random.default_rng(seed)
    rules = RoiRules()
    if root is None:
        options = SceneOptions(SCENE_SIDE, SCENE_SIDE, domain="real")
        source: Scenes | Msip = Scenes(count, view="thermal", seed=seed, options=options)
        settings = settings.scaled(SCENE_SIDE / _USUAL_SIDE)
        rules = RoiRules(min_side=30, min_candidate_side=20)
        chosen = range(count)
    else:
        source = Msip(root, channels=1)
        chosen = np.sort(rng.permutation(len(source))[:count]).tolist()
    rows = []
    for index in chosen:
        record = source[index]
        rois = record.get("rois", ())
        if not len(rois):
            rois = find_candidates(record["image"][..., 0], settings)
        rows.append(_row(record["image"], np.asarray(rois), rules, rng))
    sheet = drawing.contact_sheet(
        rows,
        column_titles=["image", "candidates", f"{_NUM_CROPS} crops", *["a crop"] * _NUM_SHOWN],
        cell=200,
        legend=[
            ("crop around a candidate", _SMALL),
            ("the same, 15 % of the image at least", _LARGE),
            ("no candidate fits: a crop anywhere", _ANYWHERE),
        ],
    )
    drawing.save_png(path, sheet)


def _row(
    image: UInt8[np.ndarray, "h w 1"],
    rois: Integer[np.ndarray, "n 4"],
    rules: RoiRules,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    height, width = image.shape[:2]
    boxes: list[Box] = []
    colours: list[Sequence[int]] = []
    for _ in range(_NUM_CROPS):
        draws = draw_roi(rng, len(rois))
        box = roi_crop_box(height, width, rois, draws, rules).box
        colours.append(_LARGE if draws.large > rules.probability else _SMALL)
        if box is None:
            colours[-1] = _ANYWHERE
            box = random_resized_crop_box(height, width, rng, RandomRoiCrop.area)
        boxes.append(box)
    hues = [
        colorsys.hsv_to_rgb(number / max(len(rois), 1), 0.9, 1.0) for number in range(len(rois))
    ]
    crops = np.array([(left, top, left + w, top + h) for top, left, h, w in boxes], np.float32)
    corners = np.concatenate([rois[:, :2], rois[:, :2] + rois[:, 2:]], 1).astype(np.float32)
    shown = [
        crop_and_resize({"image": image}, box, (200, 200))["image"] for box in boxes[:_NUM_SHOWN]
    ]
    return [
        image,
        drawing.draw_boxes(image, corners, [[round(255 * part) for part in hue] for hue in hues]),
        drawing.draw_boxes(image, crops, colours),
        *shown,
    ]
