"""CFPT on TinyPerson: people of a few pixels at sea and on beaches, in tiles of large pictures.

    python -m vadapt.main --config=configs/cfpt_tinyperson.py --workdir=runs/cfpt_tinyperson \\
        --config.data.path=DATA

DATA is `tiny_set` as it is downloaded (docs/detection.md). Pictures are cut into tiles of 512x512
that share 154 pixels, as CFPT's paper has it (arXiv:2407.19696; nothing of it is released, and
nobody has trained this recipe here); what is found in tiles is merged, and scored as the benchmark
does: AP_tiny_50 first. One GPU, half a day. On a laptop, on small things in wide scenes:

    python -m vadapt.main --config=configs/cfpt_tinyperson.py:scenes --workdir=runs/tiny_scenes

Arguments (after a colon, joined by commas):
    r18 | r50 | r101                     the ResNet; r50 is the default
    gfl | fsaf | retinanet | atss        the head; gfl is the default
    cfpt | fpn                           the neck; cfpt is the default
    scenes                               the embedded data set
"""

from ml_collections import ConfigDict

from vadapt.configs import parts
from vadapt.configs.parts import cfpt

TILES, PASSES = 5000, 12  # about as many tiles hold a person


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = parts.words(arg, *cfpt.WORDS)
    words = words if {*words} & {*cfpt.DEPTHS} else [*words, "r50"]
    config = ConfigDict({"seed": 0, "batch_size": 2})
    config.total_steps = PASSES * TILES // config.batch_size
    config.data = parts.images_and_boxes(layout="tiny_person", image_size=(512, 512))
    config.data.tile, config.data.tile_overlap = (512, 512), (154, 154)
    config.test = ConfigDict({"test": {"split": "test", "box_rule": "all", "bad_boxes": "keep"}})
    cfpt.detector(config, words, "gfl")
    config.optimizer.lr = 2.5e-3  # of the paper, whatever the head
    config.optimizer.schedule.warmup = 500 / config.total_steps
    config.eval.update({"protocol": "tiny_person", "batch": 4})
    config.eval.tile, config.eval.tile_overlap = config.data.tile, config.data.tile_overlap
    if "scenes" in words:
        cfpt.scenes(config)
    return config
