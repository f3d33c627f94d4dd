"""Golden cases of Rein's losses: one prediction's terms, with the file's points."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.golden_modules.fields import Fields, only, same
from tests.golden_modules.pad_models import Arrays
from vadapt.losses import mask2former as losses


def loss_settings(config: Fields) -> losses.Settings:
    """The loss of a golden file's settings."""
    weights, costs = config["weights"], config["match_weights"]
    only(config, dice_eps=(1.0,))
    if 0 <= config["ignore_index"] < config["num_classes"]:
        raise ValueError(f"ignore_index is {config['ignore_index']}, a class; vadapt ignores none")
    return losses.Settings(
        num_points=config["num_points"],
        oversampling=config["oversample_ratio"],
        importance=config["importance_sample_ratio"],
        class_weight=weights["cls"],
        mask_weight=weights["mask"],
        dice_weight=weights["dice"],
        no_object=no_object(config["class_weight"], config["num_classes"]),
        class_cost=costs["cls"],
        mask_cost=costs["mask"],
        dice_cost=costs["dice"],
    )


def no_object(weights: list[float], num_classes: int) -> float:
    """The last weight of the cross entropy; those of classes are 1."""
    *classes, last = weights
    if classes != [1.0] * num_classes:
        raise ValueError(f"weights of classes are {classes}; vadapt's are 1, for {num_classes}")
    return last


def by_class(rows: Any, queries: Any, present: Any) -> Any:
    """Rows in the order of images, then of matched queries, as [b, k, ...]; zero elsewhere."""
    b, k = present.shape
    order = jnp.where(present, queries, jnp.iinfo(jnp.int32).max)
    rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
    counts = present.sum(axis=1)
    before = jnp.cumsum(counts) - counts
    number = jnp.where(present, rank + before[:, None], len(rows))
    filled = jnp.concatenate([rows, jnp.zeros((1, *rows.shape[1:]), rows.dtype)])
    return filled[number.reshape(-1)].reshape(b, k, *rows.shape[1:])


def assigned(queries: Any, present: Any, num_queries: int) -> Any:
    """For each query the place of its class among those present, from 1; 0 for no object."""
    places = jnp.where(present, jnp.cumsum(present, axis=1), 0)
    hot = queries[..., None] == jnp.arange(num_queries)[None, None]
    return jnp.where(hot, places[..., None], 0).sum(axis=1)


def layer_loss(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """One prediction's terms; costs have a column for each class of an image, as in the file."""
    classes, masks, labels = inputs["cls"], inputs["mask"], inputs["gt"]
    same(config, num_queries=masks.shape[1])
    settings = loss_settings(config)
    present = losses.classes_present(labels, config["num_classes"])
    matching = inputs["match_points"]
    costs = losses.matching_cost(classes, masks, matching, labels, settings)
    queries = losses.match(costs, present)
    drawn = points_by_class(inputs, "", queries, present)
    points = losses.Points(*(x[None] for x in drawn))
    found = losses.mask2former_loss(
        classes[None], masks[None], labels, points=points, settings=settings
    )
    numbers = assigned(queries, present, masks.shape[1])
    there = classes_of(np.asarray(labels), config["num_classes"])
    taken = jnp.stack([mask[query] for mask, query in zip(masks, queries, strict=True)])
    where = losses.uncertain_points(taken, drawn, settings)
    outputs = {**found, "loss_points": by_query(where, queries, there)}
    for i, numbered in enumerate(there):
        outputs[f"cost{i}"] = costs[i][:, numbered]
        outputs[f"assigned_gt_plus1_{i}"] = numbers[i]
    return outputs


def classes_of(labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """The classes of each image, ascending."""
    return [np.intersect1d(image, np.arange(num_classes)) for image in labels]


def by_query(rows: Any, queries: Any, there: list[np.ndarray]) -> Any:
    """Rows of classes that are there, [b, k, ...], in the order of images, then of queries."""
    return jnp.concatenate(
        [
            rows[i][classes[jnp.argsort(queries[i][classes])]]
            for i, classes in enumerate(map(jnp.asarray, there))
        ]
    )


def points_by_class(inputs: Arrays, prefix: str, queries: Any, present: Any) -> losses.Points:
    """A file's points for one prediction."""
    candidates, others = (
        by_class(inputs[f"{prefix}{name}_points"], queries, present)
        for name in ("candidate", "random")
    )
    return losses.Points(inputs[f"{prefix}match_points"], candidates, others)


def settings_of_head(config: Fields) -> losses.Settings:
    """The loss of a head's settings."""
    train = config["train_cfg"]
    assigner = train["assigner"]
    only(assigner, type=("mmdet.HungarianAssigner",))
    only(train["sampler"], type=("mmdet.MaskPseudoSampler",))
    terms = [config[f"loss_{name}"] for name in ("cls", "mask", "dice")]
    by_class, by_mask, by_dice = terms
    for term in terms:
        only(term, reduction=("mean",))
    only(by_class, type=("mmdet.CrossEntropyLoss",), use_sigmoid=(False,))
    only(by_mask, type=("mmdet.CrossEntropyLoss",), use_sigmoid=(True,))
    only(by_dice, type=("mmdet.DiceLoss",), use_sigmoid=(True,), activate=(True,))
    only(by_dice, naive_dice=(True,), eps=(1.0,))
    class_cost, mask_cost, dice_cost = match_costs(assigner["match_costs"])
    return losses.Settings(
        num_points=train["num_points"],
        oversampling=train["oversample_ratio"],
        importance=train["importance_sample_ratio"],
        class_weight=by_class["loss_weight"],
        mask_weight=by_mask["loss_weight"],
        dice_weight=by_dice["loss_weight"],
        no_object=no_object(by_class["class_weight"], config["num_classes"]),
        class_cost=class_cost,
        mask_cost=mask_cost,
        dice_cost=dice_cost,
    )


def match_costs(costs: list[Fields]) -> list[float]:
    """Weights of the matching's costs: of classes, of masks and of dice."""
    kinds = ("mmdet.ClassificationCost", "mmdet.CrossEntropyLossCost", "mmdet.DiceCost")
    for cost in costs:
        only(cost, type=kinds, use_sigmoid=(True,), pred_act=(True,), eps=(1.0,))
    weights = {cost["type"]: cost["weight"] for cost in costs}
    return [weights[kind] for kind in kinds]


MODULES = {"Mask2FormerHead._loss_by_feat_single": layer_loss}
