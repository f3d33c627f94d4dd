"""Golden cases of dense detection heads: predictions, targets, losses, detections."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.golden_modules import cfpt_boxes, cfpt_recipe
from tests.golden_modules.cfpt_boxes import anchor_grid, kept, level_sizes
from tests.golden_modules.fields import Fields, only, same
from tests.golden_modules.pad_models import Arrays, imported
from tests.golden_modules.rein_backbones import nchw
from tests.golden_modules.rein_head import Headed, feature_maps
from vadapt.boxes.geometry import ImageSizes
from vadapt.heads import box_head

SLOTS = 2  # of ground truths, more than any image of a case has


def head_of(config: Fields, inputs: Arrays, options: dict[str, Any]) -> Any:
    """The head of a golden file's settings."""
    names = {
        "RetinaHead": "retinanet",
        "GFLHead": "gfl",
        "ATSSHead": "atss",
        "FSAFHead": "fsaf",
    }
    sizes = level_sizes(config)
    if [x.shape[2:] for name, x in inputs.items() if name.startswith("feat")] != sizes:
        raise ValueError(f"feat_sizes are {sizes}; the maps are of other sizes")
    train, generator = config["train_cfg"], config["anchor_generator"]
    only(train, allowed_border=(-1,), pos_weight=(-1,), debug=(True, False))
    grid = anchor_grid(generator)
    if "norm_cfg" in config:
        only(config["norm_cfg"], type=("GN",), requires_grad=(True,))
        options = {**options, "num_groups": config["norm_cfg"]["num_groups"]}
    head = box_head(
        names[config["type"]],
        [config["in_channels"]] * len(sizes),
        config["num_classes"],
        width=config["feat_channels"],
        depth=config["stacked_convs"],
        strides=grid.strides,
        **options,
        rngs=nnx.Rngs(0),
    )
    if head.grid != grid:
        raise ValueError(f"anchors are {grid}; this head's are {head.grid}")
    return head


def overlap_of(config: Fields) -> dict[str, float]:
    """IoU of the suppression."""
    only(config["test_cfg"]["nms"], type=("nms",))
    return {"overlap": config["test_cfg"]["nms"]["iou_threshold"]}


def focal_of(config: Fields) -> dict[str, float]:
    loss = config["loss_cls"]
    only(loss, type=("FocalLoss",), use_sigmoid=(True,), reduction=("mean", "none"))
    return {name: loss[name] for name in ("alpha", "gamma")} | {"class_weight": loss["loss_weight"]}


def deltas_of(config: Fields) -> dict[str, Any]:
    coder = config["bbox_coder"]
    only(coder, type=("DeltaXYWHBBoxCoder",))
    return {"means": coder["target_means"], "stds": coder["target_stds"]}


def statistics_of(config: Fields) -> dict[str, Any]:
    assigner = config["train_cfg"]["assigner"]
    only(assigner, type=("ATSSAssigner",))
    return {"nearest": assigner["topk"], "base_scale": base_scale(config)}


def base_scale(config: Fields) -> float:
    only(config["anchor_generator"], scales_per_octave=(1,))
    return config["anchor_generator"]["octave_base_scale"]


def retinanet(config: Fields, inputs: Arrays) -> Any:
    assigner, generator = config["train_cfg"]["assigner"], config["anchor_generator"]
    only(assigner, type=("MaxIoUAssigner",), ignore_iof_thr=(-1,))
    only(config["loss_bbox"], type=("L1Loss",))
    options = {
        "positive": assigner["pos_iou_thr"],
        "negative": assigner["neg_iou_thr"],
        "least": float(assigner["min_pos_iou"]),
        "base_scale": generator["octave_base_scale"],
        "per_octave": generator["scales_per_octave"],
        "ratios": generator["ratios"],
        "box_weight": config["loss_bbox"]["loss_weight"],
    }
    options |= focal_of(config) | deltas_of(config) | overlap_of(config)
    return head_of(config, inputs, options)


def gfl(config: Fields, inputs: Arrays) -> Any:
    by_class, by_box, by_side = (config[f"loss_{name}"] for name in ("cls", "bbox", "dfl"))
    only(by_class, type=("QualityFocalLoss",), use_sigmoid=(True,))
    only(by_box, type=("GIoULoss",))
    only(by_side, type=("DistributionFocalLoss",))
    options = {
        "most": config["reg_max"],
        "beta": by_class["beta"],
        "class_weight": by_class["loss_weight"],
        "box_weight": by_box["loss_weight"],
        "distance_weight": by_side["loss_weight"],
    }
    return head_of(config, inputs, options | statistics_of(config) | overlap_of(config))


def atss(config: Fields, inputs: Arrays) -> Any:
    by_box, by_middle = config["loss_bbox"], config["loss_centerness"]
    only(by_box, type=("GIoULoss",))
    only(by_middle, type=("CrossEntropyLoss",), use_sigmoid=(True,))
    options = {
        "box_weight": by_box["loss_weight"],
        "centerness_weight": by_middle["loss_weight"],
    }
    options |= focal_of(config) | deltas_of(config) | statistics_of(config) | overlap_of(config)
    return head_of(config, inputs, options)


def fsaf(config: Fields, inputs: Arrays) -> Any:
    assigner, coder, by_box = (
        config["train_cfg"]["assigner"],
        config["bbox_coder"],
        config["loss_bbox"],
    )
    only(config, reg_decoded_bbox=(True,))
    only(assigner, type=("CenterRegionAssigner",))
    only(coder, type=("TBLRBBoxCoder",))
    only(by_box, type=("IoULoss",), reduction=("none",))
    options = {
        "core": assigner["pos_scale"],
        "shadow": assigner["neg_scale"],
        "least": assigner["min_pos_iof"],
        "normalizer": coder["normalizer"],
        "epsilon": by_box["eps"],
        "box_weight": by_box["loss_weight"],
        "base_scale": base_scale(config),
    }
    return head_of(config, inputs, options | focal_of(config))


def truths(inputs: Arrays) -> tuple[Any, Any, Any]:
    """Ground truths of the images, padded with rows that would match much."""
    number = sum(name.startswith("gt_bboxes") for name in inputs)
    boxes, labels = (
        [inputs[f"gt_{kind}{i}"] for i in range(number)] for kind in ("bboxes", "labels")
    )
    slots = max(map(len, boxes)) + SLOTS
    there = np.asarray([np.arange(slots) < len(one) for one in boxes])
    filled = [
        jnp.concatenate([one, jnp.tile(jnp.asarray([[0.0, 0, 32, 32]]), (slots - len(one), 1))])
        for one in boxes
    ]
    padded = [np.pad(np.asarray(one), (0, slots - len(one))) for one in labels]
    return jnp.stack(filled), jnp.asarray(np.stack(padded), jnp.int32), jnp.asarray(there)


def run_head(build: Any, config: Fields, params: Arrays, inputs: Arrays) -> tuple[Any, ...]:
    """The head, its predictions and the ground truths that it was called with."""
    named = {f"bbox_head.{name}": value for name, value in params.items()}
    head = imported(Headed(build(config, inputs)), named).head
    return head, head(feature_maps(inputs)), truths(inputs)


def predictions_of(found: Any) -> Arrays:
    names = {"cls_score": found.classes, "bbox_pred": found.boxes, "centerness": found.centerness}
    return {f"{name}{i}": nchw(x) for name, maps in names.items() for i, x in enumerate(maps)}


def terms_of(head: Any, found: Any, truth: Any, sizes: ImageSizes) -> Arrays:
    terms = head.level_losses(found, *truth, sizes)
    return {**terms, "total": sum(head.loss(found, *truth, sizes).values())}


def image_sizes(config: Fields) -> tuple[ImageSizes, Any]:
    """Sizes of the images, and (x, y) by which they were resized."""
    metas, (height, width) = config["img_metas"], config["image_hw"]
    padded, real = (
        jnp.asarray([meta[name] for meta in metas], jnp.int32)
        for name in ("pad_shape", "img_shape")
    )
    if int(np.max([meta["pad_shape"][0] for meta in metas])) > height:
        raise ValueError(f"an image is higher than image_hw, {height} x {width}")
    scales = []
    for meta in metas:
        x, y = meta["scale_factor"][:2]
        same(meta, scale_factor=[x, y, x, y])
        scales.append([x, y])
    return ImageSizes(padded, real), jnp.asarray(scales, jnp.float32)


def whole_head(build: Any, *, encoded: bool) -> Any:
    """A builder of cases of a head; targets of boxes are codes, or boxes in pixels."""

    def run(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
        head, found, truth = run_head(build, config, params, inputs)
        sizes, scales = image_sizes(config)
        targets = head.targets(found, *truth, sizes)
        boxes = targets.boxes
        if encoded:
            anchors = jnp.concatenate(head.grid.levels(level_sizes(config)))[None]
            boxes = head.coder.encode(jnp.broadcast_to(anchors, boxes.shape), boxes)
        weights = jnp.broadcast_to(targets.positive[..., None], boxes.shape)
        outputs = {
            **predictions_of(found),
            **terms_of(head, found, truth, sizes),
            "target_labels": targets.labels,
            "target_label_weights": targets.counts.astype(jnp.float32),
            "target_bbox": jnp.where(weights, boxes, 0.0),
            "target_bbox_weights": weights.astype(jnp.float32),
            "num_pos_norm": targets.number,
        }
        test = config["test_cfg"]
        only(test, min_bbox_size=(0,))
        detections = head.detect(
            *(found, sizes),
            scales=scales,
            before=test["nms_pre"],
            least=test["score_thr"],
            most=test["max_per_img"],
        )
        for i in range(len(sizes.real)):
            number = config["out_shapes"][f"det_labels{i}"][0]
            one = type(detections)(*(x[i] for x in detections))
            outputs[f"det_bboxes{i}"], outputs[f"det_labels{i}"] = kept(one, number)
        return outputs

    return run


def fsaf_head(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    head, found, truth = run_head(fsaf, config, params, inputs)
    height, width = config["image_hw"]
    sizes = ImageSizes.whole(len(truth[0]), (height, width))
    positive = head.selected(found, *truth, sizes).positive
    return {
        **predictions_of(found),
        **terms_of(head, found, truth, sizes),
        "num_pos": positive.sum(dtype=jnp.float32) / len(positive),
    }


_WHOLE = "head: forward, targets, losses, gradients of the summed losses, decoded detections"
MODULES = {
    **cfpt_boxes.MODULES,
    **cfpt_recipe.MODULES,
    f"retina {_WHOLE}": whole_head(retinanet, encoded=True),
    f"gfl {_WHOLE}": whole_head(gfl, encoded=False),
    f"atss {_WHOLE}": whole_head(atss, encoded=False),
    "FSAF head: forward, losses with online level selection, gradients": fsaf_head,
}
COUNTS = cfpt_boxes.COUNTS
