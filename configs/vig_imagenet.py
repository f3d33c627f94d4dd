"""Pyramid ViG on ImageNet with groups of nearest neighbours: one label an image.

    python -m vadapt.main --config=configs/vig_imagenet.py --workdir=runs/vig \\
        --config.data.path=IMAGENET

IMAGENET holds `train/CLASS/*.JPEG` and `val/CLASS/*.JPEG`. For the tiny size GKGNet's paper
(arXiv:2308.14378) reports 79.3 % top-1 with two groups, and 78.2 % with one, which is ViG's own
(arXiv:2206.00272, whose recipe this is); nobody has trained this configuration here. 300 epochs in
batches of 1024, eight accelerators, days. On a laptop, in minutes to 90 % of 20 classes, on objects
cut from the embedded scenes:

    python -m vadapt.main --config=configs/vig_imagenet.py:scenes --workdir=runs/vig_scenes

Arguments (after a colon, joined by commas):
    ti | s | m | b      the size; ti is the default
    plain               one group: ViG itself
    scenes              the embedded data set, 20 classes, and a ViG for 64 px
"""

from ml_collections import ConfigDict

from configs import gkgnet_coco, parts

SIZES = ("ti", "s", "m", "b")
IMAGES = 1_281_167


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = [word for word in arg.split(",") if word]
    allowed = (*SIZES, "plain", "scenes")
    unknown = set(words) - set(allowed)
    if unknown:
        raise ValueError(f"unknown argument {sorted(unknown)}; allowed: {', '.join(allowed)}")
    size = next((word for word in words if word in SIZES), "ti")
    config = gkgnet_coco.coco(224, f"pvig_{size}")
    config.batch_size, config.seed = 1024, 0
    config.total_steps = 300 * IMAGES // config.batch_size
    data = config.data
    data.source, data.layout, data.num_labels = "folders", "", 1000
    data.augment, data.crop_area, data.balance, data.views = "rand_augment", (0.08, 1.0), 0.0, 3
    data.test_crop = 0.9
    config.head = ConfigDict({"name": "mlp"})
    task = config.task
    task.name, task.layers = "classification", (3,)
    del task.loss
    task.mixup, task.cutmix, task.smoothing = 0.8, 1.0, 0.1
    optimizer = config.optimizer
    del optimizer.drops
    optimizer.base_lr, optimizer.end_lr, optimizer.warmup_share = 5e-4, 1e-5, 20 / 300
    optimizer.clip_norm = 0.0
    config.parallel.step.ema = 0.99996
    config.eval.batch = 128
    if "scenes" in words:
        scenes(config)
    config.model.options.groups = 1 if "plain" in words else 2
    return config


def scenes(config: ConfigDict) -> None:
    """The laptop's version: the largest object of each scene, too short a course to mix images."""
    config.total_steps, config.batch_size = 600, 32
    data = config.data
    data.source, data.image_size, data.num_labels = "scene_objects", (64, 64), 20
    data.augment, data.crop_area, data.views, data.test_crop = "crop", (0.6, 1.0), 1, 0.0
    data.num_scenes = 2048
    data.mean, data.std = (0.467,) * 3, (0.198,) * 3
    test = {"num_scenes": 256, "scene_seed": 900_002}
    config.test = ConfigDict(
        {"clean": {**test, "domain": "synthetic"}, "other": {**test, "domain": "real"}}
    )
    config.model.backbone, config.model.options = "vig_micro", ConfigDict()
    config.task.mixup = config.task.cutmix = 0.0
    config.optimizer.base_lr = 1.6e-2
    config.parallel.step.ema = 0.0
    parts.float32(config)
    parts.look_up_every(config, 300)
