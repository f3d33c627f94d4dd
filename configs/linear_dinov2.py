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

from vadapt.configs import parts

SIZES = {"small": 12, "base": 12, "large": 24, "giant": 40}  # blocks
METHODS = {
    "linear": {"name": "none"},
    "rein": {"name": "rein", "query_width": None, "num_tokens": 100},
    "spm": {"name": "spm", "hidden": 64, "steps": 3},
    "full": {"name": "none"},
}


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = parts.words(arg, *SIZES, *METHODS, "scenes")
    way = parts.one_of(words, METHODS, "linear")
    config = folders(parts.one_of(words, SIZES, "base"))
    config.method = ConfigDict(METHODS[way])
    if "scenes" in words:
        scenes(config)
    if way == "full":
        config.trainable = "everything"
        config.update(config.full)
    return config


def folders(size: str) -> ConfigDict:
    """A user's own folder."""
    config = ConfigDict({"total_steps": 10_000, "batch_size": 16, "seed": 0})
    config.trainable = "default"  # the head, and adapters if there are any
    config.baselines = False
    # What is otherwise where everything trains, without a method, as for the baseline.
    config.full = {"optimizer": {"rules": (("backbone/.*", {"rate": 0.1}),)}}
    config.data = parts.folders_and_masks(image_size=(518, 518))
    config.data.short_edges = tuple(int(51.8 * k) for k in range(5, 21))
    config.data.longest = config.data.test_longest = 2072
    config.data.test_shortest = 518
    config.test = ConfigDict({"val": {"split": "val"}})
    config.model = parts.backbone(f"dinov2_{size}", f"hf:facebook/dinov2-{size}")
    config.neck = parts.named("none")
    config.head = parts.named("linear")
    config.task = parts.named("segmentation", layers=(SIZES[size] - 1,), norm=True)
    schedule = parts.named("polynomial", warmup=0.0375, power=1.0, end=0.0)
    config.optimizer = parts.adamw(1e-3, schedule, weight_decay=1e-4)
    config.parallel = parts.parallel()
    config.eval, config.run = parts.windows((518, 518), batch=4), parts.run()
    config.eval.every = 1000
    return config


def scenes(config: ConfigDict) -> None:
    """The laptop's version: trained on clean scenes by day, tested on dirty ones at night."""
    config.total_steps, config.batch_size = 1500, 32
    config.data = parts.folders_and_masks(**parts.SCENES, num_scenes=1024)
    config.test = parts.test_scenes(256)
    parts.micro_backbone(config)
    config.task.layers = (5,)
    config.optimizer.lr = 4e-3
    parts.float32(config)
    config.eval.update({"crop": (), "batch": 64})
    parts.look_up_every(config, 500)
