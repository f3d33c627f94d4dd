"""CFPT on VisDrone2019-DET: small objects from the air, by attention between a pyramid's levels.

    python -m vadapt.main --config=configs/cfpt_visdrone.py --workdir=runs/cfpt_visdrone \\
        --config.data.path=DATA
    python -m vadapt.predict --workdir=runs/cfpt_visdrone --images=PHOTOS --out=found

DATA holds `VisDrone2019-DET-train` and `VisDrone2019-DET-val` as they are downloaded
(docs/detection.md); for the authors' COCO files `--config.data.layout=visdrone_coco`. Images fit
into 1333x800, two in a batch, 60 passes. CFPT's authors report an AP of 20.0, 22.4 and 22.6 on the
validation images with RetinaNet (ResNet-18, 50, 101), by COCO's rules; nobody has trained this
recipe here. Their augmentation of colors and by rotation is left out: as released, it takes
normalized pixels for plain ones and spoils two in five images. One GPU, a day. On a laptop, small
things in wide scenes that come with the package, by a narrow ResNet from scratch:

    python -m vadapt.main --config=configs/cfpt_visdrone.py:scenes --workdir=runs/cfpt_scenes

Arguments (after a colon, joined by commas):
    r18 | r50 | r101                     the ResNet; r18 is the default
    retinanet | gfl | atss | fsaf        the head; retinanet is the default
    cfpt | fpn                           the neck; cfpt is the default
    scenes                               the embedded data set
"""

from ml_collections import ConfigDict

from vadapt.configs import parts
from vadapt.configs.parts import cfpt

IMAGES, PASSES = 6471, 60


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = parts.words(arg, *cfpt.WORDS)
    config = ConfigDict({"seed": 0, "batch_size": 2})
    config.total_steps = PASSES * IMAGES // config.batch_size
    config.data = parts.images_and_boxes(layout="visdrone", image_size=(832, 1344))
    config.data.longest, config.data.short_edges = 1333, (800,)
    config.data.test_longest, config.data.test_shortest = 1333, 800
    config.data.box_rule = "visdrone"
    # As COCO's tools take them, of which none cuts boxes at the edge.
    whole = {"box_rule": "all", "bad_boxes": "keep"}
    config.test = ConfigDict({"val": {"split": "val", **whole}})
    cfpt.detector(config, words, "retinanet")
    config.optimizer.schedule.warmup = 500 / config.total_steps
    if "scenes" in words:
        cfpt.scenes(config)
    return config
