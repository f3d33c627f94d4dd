"""Golden cases of Rein's data and metrics: augmentation, label maps, scores, windows."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.golden_modules.fields import Fields, same
from tests.golden_modules.pad_models import Arrays, nhwc
from tests.golden_modules.programs import compiled
from vadapt.data.label_maps import CITYSCAPES_IDS, IGNORE, lookup_table, mapillary_ids
from vadapt.data.photometric import PhotometricDistortion, PhotometricDraws, distort
from vadapt.data.resampling import cut
from vadapt.data.segmentation_transforms import balanced_box, short_edge_size
from vadapt.metrics.segmentation import Confusion, domain_scores
from vadapt.tasks.sliding import slide

# What the original calls the scores.
METRICS = {"aAcc": "aacc", "mIoU": "miou", "mAcc": "macc"}


def read_draws(draws: list[list[Any]], ranges: PhotometricDistortion) -> PhotometricDraws:
    """The original's draws in order: a coin before each step, and the step's number if it fell.

    Raises:
        ValueError: a number was drawn from another range than the distortion's.
    """
    drawn = iter(draws)

    def maybe(*expected: float) -> Any:
        if not next(drawn)[2]:
            return None
        _, limits, value = next(drawn)
        if tuple(limits) != expected:
            raise ValueError(f"{value} was drawn from {limits}, not from {expected}")
        return value

    brightness = maybe(-ranges.brightness, ranges.brightness)
    contrast_last = next(drawn)[2] == 0
    contrast = None if contrast_last else maybe(*ranges.contrast)
    saturation = maybe(*ranges.saturation)
    hue = maybe(-ranges.hue, ranges.hue)
    contrast = maybe(*ranges.contrast) if contrast_last else contrast
    return PhotometricDraws(brightness, contrast, contrast_last, saturation, hue)


def photometric(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    images = np.asarray(inputs["image_bgr"]).astype(np.uint8)[..., ::-1]
    ranges = PhotometricDistortion(
        brightness=config["brightness_delta"],
        contrast=tuple(config["contrast_range"]),
        saturation=tuple(config["saturation_range"]),
        hue=config["hue_delta"],
    )
    distorted = [
        distort(image, read_draws(draws, ranges))
        for image, draws in zip(images, config["draws"], strict=True)
    ]
    # As floats: the file's tolerance of one grey level holds for numbers, not for ids.
    return {"image_bgr": np.stack(distorted)[..., ::-1].astype(np.float32)}


def random_crop(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    height, width = config["crop_size"]
    boxes = []
    for label, draws in zip(np.asarray(inputs["seg"]), config["draws"], strict=True):
        drawn = [(*offset, height, width) for offset in np.reshape(draws, (-1, 2)).tolist()]
        labels = functools.partial(cut, label)
        top, left, *_ = balanced_box(labels, drawn, config["cat_max_ratio"])
        boxes.append((top, top + height, left, left + width))
    return {"bbox_y1_y2_x1_x2": np.array(boxes)}


def short_edge(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    cases = np.asarray(inputs["h_w_short"]).tolist()
    same(config, cases=cases)
    return {"h_w": np.array([short_edge_size(*case, config["max_size"]) for case in cases])}


def label_maps(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    names = config["mapillary_names"]
    tables = {
        "gta": lookup_table(CITYSCAPES_IDS, 19, rest=IGNORE)[:256],
        "mapillary_v1.2": lookup_table(mapillary_ids(names), 19)[: len(names)],
    }
    return {name: table.astype(np.int32) for name, table in tables.items()}


def domain_iou(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """The original finds a sample's data set by the first key in its path, else "unknown"."""
    states: dict[str, Confusion] = {}
    for path, prediction, target in zip(config["paths"], inputs["pred"], inputs["gt"], strict=True):
        name = next((key for key in config["dataset_keys"] if key in path), "unknown")
        state = states.get(name, Confusion.empty(config["num_classes"]))
        states[name] = state.update(prediction[None], target[None])
    scores = domain_scores(
        {name: state.counts() for name, state in states.items()},
        [key for key in config["mean_used_keys"] or config["dataset_keys"] if key in states],
        decimals=2,
    )
    return {
        f"{name}_{theirs}".replace("/", "_"): jnp.float32(scores[f"{name}/{ours}"])
        for name in (*states, "mean")
        for theirs, ours in METRICS.items()
        if f"{name}/{ours}" in scores
    }


def slide_merge(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    def score(images: Any) -> Any:
        rows = jnp.arange(float(images.shape[1]))[None, :, None, None]
        columns = jnp.arange(float(images.shape[2]))[None, None, :, None]
        offsets = 0.1 * rows - 0.05 * columns
        scores = jnp.einsum("bhwc,kc->bhwk", images, inputs["weight"])
        return scores + jnp.broadcast_to(offsets, scores.shape)

    crop, stride = tuple(config["crop_size"]), tuple(config["stride"])
    scores = slide(score, nhwc(inputs["image"]), crop, stride, windows=2)
    return {"seg_logits": scores.transpose(0, 3, 1, 2)}


MODULES = {
    "PhotoMetricDistortion": photometric,
    "RandomCrop": random_crop,
    "ResizeShortestEdge": short_edge,
    "label_maps": label_maps,
    "DGIoUMetric": domain_iou,
    "slide_inference": compiled(slide_merge),
}
