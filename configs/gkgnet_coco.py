"""GKGNet on COCO 2014: 80 labels an image, a graph of patches and labels, everything trained.

    python -m vadapt.main --config=configs/gkgnet_coco.py --workdir=runs/gkgnet \\
        --config.data.path=COCO --config.model.weights=pvig_s_82.1.pth.tar

COCO holds `annotations/instances_{train,val}2014.json`, `train2014/` and `val2014/`; the weights
are Pyramid ViG-S of ImageNet, from Vision GNN's release. The paper reports 86.7 mAP at 448 px and
87.7 at 576 px (GKGNet, arXiv:2308.14378); nobody has trained this configuration here. Eight
accelerators of 16 images each are the paper's, 80 epochs. With `frozen` only the labels' graph is
trained, on the maps of a frozen DINOv2: a setting of this package, without a published number.
On a laptop, from scratch in minutes to 44 mAP (chance: 22), with scenes that come with the package:

    python -m vadapt.main --config=configs/gkgnet_coco.py:scenes --workdir=runs/gkgnet_scenes

Arguments (after a colon, joined by commas):
    448 | 576           pixels of a side; 576 is the default (frozen: multiples of 14 below)
    tiny | small        the backbone, Pyramid ViG; small is the default
    frozen              labels' graph on a frozen DINOv2-B (with scenes: on the micro backbone)
    linear              one linear layer in place of the labels' graph
    scenes              the embedded data set, 20 labels, and a ViG for 64 px
"""

from ml_collections import ConfigDict

from vadapt.configs import parts
from vadapt.configs.parts import gkgnet

EPOCHS, IMAGES = 80, 82_783  # of COCO's train2014


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = parts.words(arg, *gkgnet.WORDS)
    config = ConfigDict({"seed": 2022, "batch_size": 128, "baselines": False})
    config.total_steps = EPOCHS * IMAGES // config.batch_size  # rare images repeat within them
    side = int(parts.one_of(words, gkgnet.SIDES, "576"))
    config.data = parts.images_and_labels(layout="coco2014", num_labels=80)
    config.data.update({"image_size": (side, side), "augment": "crop_mix", "balance": 0.01})
    config.data.crop_area = (0.2, 1.0)  # where `augment` crops at random
    config.test = ConfigDict({"val": {"split": "val"}})
    gkgnet.system(config, words)
    drops = (10 / EPOCHS, 50 / EPOCHS)
    schedule = parts.named("staircase", warmup=5 / EPOCHS, drops=drops)
    lr = 5e-4 if "frozen" in words else 1e-4
    config.optimizer = parts.adamw(lr, schedule, weight_decay=0.05, clip_norm=5.0)
    config.parallel = parts.parallel()
    # The threshold is of a probability, from which on a label counts as predicted.
    config.eval = parts.evaluation(every=1000, batch=32, threshold=0.5)
    config.run = parts.run()
    if "scenes" in words:
        gkgnet.scenes(config, words)
    return config
