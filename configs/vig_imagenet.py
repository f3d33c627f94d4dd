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

from vadapt.configs import parts

SIZES = ("ti", "s", "m", "b")
EPOCHS, IMAGES = 300, 1_281_167


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = parts.words(arg, *SIZES, "plain", "scenes")
    config = imagenet(parts.one_of(words, SIZES, "ti"))
    if "scenes" in words:
        scenes(config)
    config.model.options.groups = 1 if "plain" in words else 2
    return config


def imagenet(size: str) -> ConfigDict:
    """The released recipe."""
    config = ConfigDict({"batch_size": 1024, "seed": 0, "baselines": False})
    config.total_steps = EPOCHS * IMAGES // config.batch_size
    config.trainable = "everything"
    config.data = parts.images_and_labels(source="folders", num_labels=1000)
    config.data.update({"augment": "rand_augment", "crop_area": (0.08, 1.0), "views": 3})
    config.data.update({"image_size": (224, 224), "test_crop": 0.9})
    config.test = ConfigDict({"val": {"split": "val"}})
    config.model = parts.backbone(f"pvig_{size}", "", groups=2, drop_path_rate=0.1)
    config.model.allow_unexpected = ("head/.*",)
    config.method, config.head = parts.named("none"), parts.named("mlp")
    config.task = task = parts.named("classification", layers=(3,), norm=False)
    task.train_norms, task.load_head = True, False
    task.mixup, task.cutmix, task.smoothing = 0.8, 1.0, 0.1
    schedule = parts.named("cosine", warmup=20 / EPOCHS, end=1e-5)
    config.optimizer = parts.adamw(2e-3, schedule, weight_decay=0.05)
    config.parallel = parts.parallel()
    config.parallel.step.ema = 0.99996
    config.eval = parts.evaluation(every=1000, batch=128, threshold=0.5, features=())
    config.run = parts.run()
    return config


def scenes(config: ConfigDict) -> None:
    """The laptop's version: the largest object of each scene, too short a course to mix images."""
    config.total_steps, config.batch_size = 600, 32
    config.data = parts.images_and_labels(**parts.SCENES, num_labels=20)
    config.data.update({"source": "scene_objects", "num_scenes": 2048})
    config.data.update({"augment": "crop", "crop_area": (0.6, 1.0)})
    config.test = parts.test_scenes(256)
    config.model.backbone, config.model.options = "vig_micro", ConfigDict()
    config.task.mixup = config.task.cutmix = 0.0
    config.optimizer.lr = 2e-3
    config.parallel.step.ema = 0.0
    parts.float32(config)
    parts.look_up_every(config, 300)
