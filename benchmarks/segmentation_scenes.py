"""Ways to adapt a segmenter, on scenes: `python -m benchmarks.segmentation_scenes`.

Every way has the same head on the shipped backbone, sees the same clean scenes by day, and is
tested on clean scenes and on others: at night, in fog and rain, by a worse camera. mIoU in percent.
Minutes a run on two cores; runs that a results file already holds are not done again.
"""

from __future__ import annotations

from benchmarks.seeds import Entry, compare_domains
from vadapt.configs import linear_dinov2, rein_gta, spm_cityscapes

ENTRIES = {
    "linear": Entry(linear_dinov2, "scenes,linear"),
    "linear, Rein": Entry(linear_dinov2, "scenes,rein"),
    "linear, SPM": Entry(linear_dinov2, "scenes,spm"),
    "linear, full": Entry(linear_dinov2, "scenes,full"),
    "Mask2Former": Entry(rein_gta, "scenes,frozen"),
    "Mask2Former, Rein": Entry(rein_gta, "scenes,rein"),
    "Mask2Former, full": Entry(rein_gta, "scenes,full"),
    "UPerNet": Entry(spm_cityscapes, "scenes,frozen"),
    "UPerNet, SPM": Entry(spm_cityscapes, "scenes,spm"),
}


if __name__ == "__main__":
    compare_domains(__doc__, ENTRIES, "miou", runs="runs/segmentation_scenes.jsonl")
