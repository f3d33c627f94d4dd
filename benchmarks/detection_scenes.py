"""Necks of a detector of small things, on scenes: `python -m benchmarks.detection_scenes`.

The same RetinaNet on the same narrow ResNet-18, all of it trained from scratch, with a pyramid that
has a top-down path (FPN) and with CFPT's attention between levels. Pictures hold some twenty things
of 5 to 20 px. Average precision in percent, by COCO's rules. Minutes a run on two cores; runs that
a results file already holds are not done again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.seeds import Entry, compare
from vadapt.configs import cfpt_visdrone
from vadapt.training.loop import Outcome

COURSE = {"total_steps": 1000, "eval.every": 0}
ENTRIES = {
    "FPN": Entry(cfpt_visdrone, "scenes,fpn", COURSE),
    "CFPT": Entry(cfpt_visdrone, "scenes,cfpt", COURSE),
}
SCORES = ("AP", "AP50", "AR100", "AP/vehicle", "AP/person", "AP/sign")


def score(config: Any, task: Any, outcome: Outcome) -> Mapping[str, float]:
    """AP and recall on the test pictures."""
    found = task.evaluate(outcome.model)
    return {name: found[f"clean/{name}"] for name in SCORES}


if __name__ == "__main__":
    compare(__doc__, ENTRIES, score, SCORES, runs="runs/detection_scenes.jsonl", decimals=2)
