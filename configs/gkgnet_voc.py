"""GKGNet on VOC 2007: 20 labels an image, trained on `trainval`, tested on `test`.

    python -m vadapt.main --config=configs/gkgnet_voc.py --workdir=runs/gkgnet_voc \\
        --config.data.path=VOCdevkit --config.model.weights=gkgnet_576.pth

The paper reports 96.8 mAP (GKGNet, arXiv:2308.14378), without the settings; the released code has
none for VOC either. These are COCO's at 448 px with a shorter course, the weights those of GKGNet
trained on COCO, whose labels' table and last layers are left out, or of Pyramid ViG-S. An hour on
one GPU. Objects that are difficult alone leave a label in doubt: it is neither learned nor ranked.
On a laptop, on the embedded scenes:

    python -m vadapt.main --config=configs/gkgnet_voc.py:scenes --workdir=runs/voc_scenes

Arguments are those of configs/gkgnet_coco.py; 448 is the default.
"""

from ml_collections import ConfigDict

from vadapt.configs import parts
from vadapt.configs.parts import gkgnet

IMAGES = 5011


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = parts.words(arg, *gkgnet.WORDS)
    config = ConfigDict({"seed": 2022, "batch_size": 32, "baselines": False})
    config.total_steps = 40 * IMAGES // config.batch_size
    side = int(parts.one_of(words, gkgnet.SIDES, "448"))
    # No label is in fewer than one of 100 images, so that none has to come more often.
    config.data = parts.images_and_labels(layout="voc2007", split="trainval", num_labels=20)
    config.data.update({"image_size": (side, side), "augment": "crop_mix", "crop_area": (0.2, 1.0)})
    config.test = ConfigDict({"test": {"split": "test"}})
    gkgnet.system(config, words)
    schedule = parts.named("staircase", warmup=1 / 16, drops=(1 / 8, 5 / 8))
    lr = 1.25e-4 if "frozen" in words else 2.5e-5
    config.optimizer = parts.adamw(lr, schedule, weight_decay=0.05, clip_norm=5.0)
    config.parallel, config.run = parts.parallel(), parts.run()
    config.eval = parts.evaluation(batch=32, threshold=0.5)
    parts.look_up_every(config, 500)
    if "scenes" in words:
        gkgnet.scenes(config, words)
    return config
