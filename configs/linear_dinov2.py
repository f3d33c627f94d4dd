"""A linear segmentation head on frozen DINOv2: the quick start for images and masks of your own.

    python -m vadapt.data.check DATA         # what is there, and what to write if it is not clear
    python -m vadapt.main --config=configs/linear_dinov2.py --workdir=runs/mine \\
        --config.data.path=DATA
    python -m vadapt.predict --workdir=runs/mine --images=PHOTOS --out=runs/mine/predicted

DATA holds `images/train`, `masks/train`, `images/val`, `masks/val`, and a `dataset.yaml` that names
the classes; docs/segmentation_data.md has other layouts, Cityscapes and ADE20K among them. For
ADE20K DINOv2's paper reports 44.3, 47.3, 47.7 and 49.0 mIoU (small to giant) with a linear head on
the last layer. One GPU or TPU, minutes to an hour. On a laptop, with data that comes with the
package, trained on clean scenes by day and tested on others at night, in fog and rain:

    python -m vadapt.main --config=configs/linear_dinov2.py:scenes --workdir=runs/linear_scenes

Arguments (after a colon, joined by commas):
    small | base | large | giant    the backbone; base is the default
    scenes                          the embedded data set and the micro backbone
    linear | rein | spm | full      frozen, with Rein, with SPM, or everything trained
"""

from ml_collections import ConfigDict

from configs import parts

SIZES = {"small": 12, "base": 12, "large": 24, "giant": 40}  # blocks
WAYS = ("linear", "rein", "spm", "full")


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = [word for word in arg.split(",") if word]
    allowed = (*SIZES, *WAYS, "scenes")
    unknown = set(words) - set(allowed)
    if unknown:
        raise ValueError(f"unknown argument {sorted(unknown)}; allowed: {', '.join(allowed)}")
    size = next((word for word in words if word in SIZES), "base")
    way = next((word for word in words if word in WAYS), "linear")
    config = folders(size)
    if "scenes" in words:
        scenes(config)
    if way == "rein":
        config.method = ConfigDict({"name": "rein", "query_width": None, "num_tokens": 100})
    if way == "spm":
        config.method = ConfigDict({"name": "spm", "hidden": 64, "steps": 3})
    if way == "full":
        config.trainable = "everything"
        config.update(config.full)
    return config


def folders(size: str) -> ConfigDict:
    """A user's own folder."""
    config = ConfigDict()
    config.total_steps = 10_000
    config.batch_size = 16
    config.seed = 0
    config.trainable = "default"  # the head, and adapters if there are any
    config.baselines = False
    # What is otherwise where everything trains, without a method, as for the baseline.
    config.full = ConfigDict({"optimizer": {"rates": (("backbone/.*", 0.1),)}})

    config.data = data = ConfigDict()
    data.source = "segmentation"
    data.path = ""
    data.split = "train"
    data.layout = ""  # a name of vadapt.data.layouts; "": as dataset.yaml says
    data.num_classes = 0  # where nothing names them
    data.image_size = (518, 518)  # of crops
    data.short_edges = tuple(int(51.8 * k) for k in range(5, 21))
    data.longest = 2072
    data.max_share = 0.75
    data.distort = True
    data.augment = True  # False: images resized to image_size, nothing random
    data.cache = ""  # a folder for features of a frozen backbone; see docs/segmentation_data.md
    data.mean, data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    data.max_corrupt = 0.01
    data.test_longest, data.test_shortest = 2072, 518
    data.view, data.domain, data.num_scenes, data.scene_seed = "visible", "synthetic", 4096, 0

    config.test = ConfigDict({"val": {"split": "val"}})

    config.model = model = ConfigDict()
    model.backbone = f"dinov2_{size}"
    model.weights = f"hf:facebook/dinov2-{size}"
    model.allow_missing = ()
    model.allow_unexpected = ()
    model.options = ConfigDict()

    config.method = ConfigDict({"name": "none"})
    config.neck = ConfigDict({"name": "none"})
    config.head = ConfigDict({"name": "linear"})

    config.task = task = ConfigDict()
    task.name = "segmentation"
    task.layers = (SIZES[size] - 1,)
    task.norm = True

    config.optimizer = optimizer = ConfigDict()
    optimizer.base_lr, optimizer.end_lr = 1.6e-2, 0.0  # 1e-3 at 16
    optimizer.warmup_share, optimizer.power = 0.0375, 1.0
    optimizer.beta1, optimizer.beta2, optimizer.epsilon = 0.9, 0.999, 1e-8
    optimizer.weight_decay = 1e-4
    optimizer.layer_decay = 1.0
    optimizer.clip_norm = 0.0
    optimizer.late = ()
    optimizer.rates = ()

    config.parallel = parts.parallel()

    config.eval = evaluation = parts.evaluation(every=1000, batch=4)
    evaluation.crop, evaluation.stride = (518, 518), ()  # windows; (): images whole
    evaluation.windows = 4  # of an image at a time
    evaluation.scales, evaluation.flip = (1.0,), False

    config.run = parts.run()
    return config


def scenes(config: ConfigDict) -> None:
    """The laptop's version: trained on clean scenes by day, tested on dirty ones at night."""
    config.total_steps = 1500
    config.batch_size = 32
    data = config.data
    data.source, data.image_size, data.short_edges = "scenes", (64, 64), ()
    data.num_scenes = 1024
    data.mean, data.std = (0.467,) * 3, (0.198,) * 3
    data.test_longest = 0
    test = {"num_scenes": 256, "scene_seed": 900_002}
    config.test = ConfigDict(
        {"clean": {**test, "domain": "synthetic"}, "other": {**test, "domain": "real"}}
    )
    config.model.backbone, config.model.weights = "vit_micro", "vit_micro_scenes"
    config.model.options = ConfigDict({"positions": "sincos"})
    config.model.allow_unexpected = ("decoder/.*",)
    config.task.layers = (5,)
    config.optimizer.base_lr = 3.2e-2
    parts.float32(config)
    config.eval.crop, config.eval.batch = (), 64
    parts.look_up_every(config, 500)
