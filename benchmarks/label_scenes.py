"""Heads and graphs for several labels an image, on scenes: `python -m benchmarks.label_scenes`.

GKGNet and the same with plain nearest neighbours (one group), both trained from scratch; and on the
shipped frozen backbone the labels' graph alone (two groups and one) beside a linear
layer. All see the same clean scenes by day, and are tested on clean scenes and on others
at night, in fog and rain. mAP in percent over 20 labels. Minutes a run on two cores; runs that a
results file already holds are not done again.
"""

from __future__ import annotations

from typing import Any

from benchmarks.seeds import Entry, compare
from configs import gkgnet_coco

ONE = {"head.groups": 1}

ENTRIES = {
    "GKGNet": Entry(gkgnet_coco, "scenes"),
    "GKGNet, one group": Entry(gkgnet_coco, "scenes", {**ONE, "model.options.groups": 1}),
    "frozen, labels' graph": Entry(gkgnet_coco, "scenes,frozen"),
    "frozen, labels' graph, one group": Entry(gkgnet_coco, "scenes,frozen", ONE),
    "frozen, linear": Entry(gkgnet_coco, "scenes,frozen,linear"),
}


def score(config: Any, task: Any, outcome: Any) -> dict[str, float]:
    """mAP on both kinds of scenes."""
    found = task.evaluate(outcome.model)
    return {"clean": found["clean/mAP"], "other": found["other/mAP"]}


if __name__ == "__main__":
    compare(
        __doc__,
        ENTRIES,
        score,
        ("clean", "other"),
        runs="runs/label_scenes.jsonl",
        decimals=2,
    )
