"""Golden cases of GKGNet around the network: its loss, how images repeat, how labels are judged."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.golden_modules.fields import Fields, only
from vadapt.data.repeated import Repeated, balanced_counts, repeat_factors
from vadapt.losses.multilabel import asymmetric_loss
from vadapt.metrics.multilabel import (
    Counts,
    average_precision,
    choose,
    label_scores,
    precision_recall,
)

Arrays = dict[str, Any]


def asymmetric(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    only(config, use_sigmoid=(True,))
    names = {"none": "none", "mean": "mean", "avg": "batch", "sum": "sum"}
    return {
        name: asymmetric_loss(
            inputs["logits"],
            inputs["target"],
            gamma_positive=config["gamma_pos"],
            gamma_negative=config["gamma_neg"],
            clip=config["clip"],
            eps=config["eps"],
            weights=inputs.get("weight"),
            reduction=reduction,
        )
        for name, reduction in names.items()
    }


def class_balanced(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    targets, threshold = np.asarray(inputs["target"]), config["oversample_thr"]
    repeated = Repeated([{}] * len(targets), balanced_counts(targets, threshold))
    return {
        "repeat_factor": repeat_factors(targets, threshold),
        "indices": repeated.places.astype(np.int32),
    }


def metrics(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
    """Fractions of the path for COCO, percentages of the one that knows labels in doubt."""
    scores, targets, areas, doubtful = (
        np.asarray(inputs[name]) for name in ("scores", "target", "area", "target_difficult")
    )
    top, threshold = config["topk"], config["threshold"]
    check_drawn(config, scores >= threshold, targets, doubtful)
    found = label_scores(scores, targets, areas, threshold=threshold, top=top)
    outputs = {f"coco/{name}": value / 100 for name, value in found.items()}
    for name in Counts._fields:  # the original's best labels must reach the threshold, too
        outputs[f"coco/{name}_top{top}"] = outputs[f"coco/{name}_top{top}_thr"]
    outputs["coco/AP"] = average_precision(scores, targets)
    outputs["mm/AP"] = average_precision(scores, doubtful)
    outputs["mm/mAP"] = 100 * outputs["mm/AP"].mean()
    for name in config["out_shapes"]:
        path, rule, metric = name.split("/") if name.count("/") == 2 else ("", "", "")
        if rule.startswith("thr"):  # thr05: from a score of 0.5
            chosen = choose(scores, threshold=float(f"{rule[3]}.{rule[4:]}"))
        elif rule.startswith("top"):
            chosen = choose(scores, top=int(rule[3:]))
        else:
            continue
        outputs[f"{path}/{rule}/{metric}"] = 100 * getattr(
            precision_recall(chosen, doubtful), metric
        )
    return outputs


def check_drawn(
    config: Fields, chosen: np.ndarray, targets: np.ndarray, doubtful: np.ndarray
) -> None:
    """Refuse arrays that were not drawn as the config says."""

    for name, labels in (("empty_classes", targets > 0), ("never_predicted", chosen)):
        if labels[:, config.get(name, [])].any():
            raise ValueError(f"{name} is {config[name]}, of which the arrays have some")
    share = config.get("difficult", 0.0)
    if (share > 0) != (doubtful < 0).any():
        raise ValueError(f"difficult is {share}, unlike the labels")


MODULES = {
    "asymmetric_loss": asymmetric,
    "class_balanced_repeat": class_balanced,
    "multilabel_metrics": metrics,
}
