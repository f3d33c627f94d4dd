"""The paper's paradigms beside one another, on scenes: `python -m benchmarks.pad_paradigms`.

Every paradigm starts from the shipped backbone (pre-trained on visible scenes), sees the same
number of infrared images, and is judged by a linear probe of its patch features on infrared scenes,
and again on visible ones: what it learned, and what it forgot. About three minutes a run on two
cores; runs that a results file already holds are not done again.
"""

from __future__ import annotations

from typing import Any

from benchmarks.seeds import Entry, compare
from vadapt.configs import mae_scenes, pad_milan_msip, pad_msip
from vadapt.tasks.probe import SceneProbe

PARADIGMS = {
    "frozen": Entry(pad_msip, "scenes,frozen"),
    "continual full": Entry(pad_msip, "scenes,full"),
    "continual full, layer decay": Entry(pad_msip, "scenes,full_layer_decay"),
    "adapter, fixed scale": Entry(pad_msip, "scenes,adapter_fixed_scale"),
    "PAD": Entry(pad_msip, "scenes"),
    "PAD, RoI crop": Entry(pad_msip, "scenes", {"data.roi_probability": 0.85}),
    "PAD with MILAN": Entry(pad_milan_msip, "scenes"),
}


def score(config: Any, task: Any, outcome: Any) -> dict[str, float]:
    """mIoU of a linear probe on infrared scenes, and on visible ones."""
    visible = mae_scenes.get_config()
    visible.eval.probe_scenes = config.eval.probe_scenes
    backbone = outcome.model.backbone
    return {
        "infrared": SceneProbe(config)(backbone)["probe"],
        "visible": SceneProbe(visible)(backbone)["probe"],
    }


if __name__ == "__main__":
    compare(__doc__, PARADIGMS, score, ("infrared", "visible"), runs="runs/pad_paradigms.jsonl")
