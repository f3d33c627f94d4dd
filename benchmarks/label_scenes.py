"""Heads and graphs for several labels an image, on scenes: `python -m benchmarks.label_scenes`.

GKGNet and the same with plain nearest neighbours (one group), both trained from scratch; and on the
shipped frozen backbone the labels' graph alone (two groups and one) beside a linear
layer. All see the same clean scenes by day, and are tested on clean scenes and on others
at night, in fog and rain. mAP in percent over 20 labels. Minutes a run on two cores; runs that a
results file already holds are not done again.
"""

from __future__ import annotations

from benchmarks.seeds import Entry, compare_domains
from vadapt.configs import gkgnet_coco

ONE = {"head.groups": 1}

ENTRIES = {
    "GKGNet": Entry(gkgnet_coco, "scenes"),
    "GKGNet, one group": Entry(gkgnet_coco, "scenes", {**ONE, "model.options.groups": 1}),
    "frozen, labels' graph": Entry(gkgnet_coco, "scenes,frozen"),
    "frozen, labels' graph, one group": Entry(gkgnet_coco, "scenes,frozen", ONE),
    "frozen, linear": Entry(gkgnet_coco, "scenes,frozen,linear"),
}


if __name__ == "__main__":
    compare_domains(__doc__, ENTRIES, "mAP", runs="runs/label_scenes.jsonl")
