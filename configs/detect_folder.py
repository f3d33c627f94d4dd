"""Detection of one's own objects on a frozen DINOv2: images, and a JSON file as COCO's.

    python -m vadapt.data.check DATA --layout coco --split train    # what is there
    python -m vadapt.main --config=configs/detect_folder.py --workdir=runs/mine \\
        --config.data.path=DATA
    python -m vadapt.predict --workdir=runs/mine --images=PHOTOS --out=found

DATA holds `train.json` and `val.json`, or `annotations/instances_train.json` and so on, and the
images; YOLO's and Pascal VOC's files go by `--config.data.layout=yolo` and `voc`
(docs/detection.md). What trains is the pyramid, the head, and with `lora` thin matrices in the
backbone; the file of a finished run has these alone. Nobody has trained this recipe on published
data. One GPU, hours. On a laptop, on small things that come with the package:

    python -m vadapt.main --config=configs/detect_folder.py:scenes --workdir=runs/detect_scenes

Arguments (after a colon, joined by commas):
    small | base | large             the backbone; base is the default
    lora | frozen                    with LoRA (default), or as it is
    pyramid | cfpt                   levels by themselves (default), or with CFPT's attention
    gfl | retinanet | atss | fsaf    the head; gfl is the default
    scenes                           the embedded data set and the micro backbone
"""

from ml_collections import ConfigDict

from vadapt.configs import parts

SIZES = {"small": 12, "base": 12, "large": 24}  # blocks
METHODS = {"lora": {"name": "lora", "rank": 8}, "frozen": {"name": "none"}}
# Strides of 7, 14, 28, 56 and 112: of patches of 14, half of it and on.
NECKS = {
    "pyramid": {"name": "simple_feature_pyramid", "doublings": (1, 0, -1), "top": 2},
    "cfpt": {"name": "cfpt", "pyramid": True, "levels": (1, 2, 3, 3), "extra": 1},
}
STRIDES = (7, 14, 28, 56, 112)
HEADS = ("gfl", "retinanet", "atss", "fsaf")


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = parts.words(arg, *SIZES, *METHODS, *NECKS, *HEADS, "scenes")
    size = parts.one_of(words, SIZES, "base")
    config = ConfigDict({"total_steps": 20_000, "batch_size": 8, "seed": 0})
    config.trainable, config.baselines = "default", False
    config.data = parts.images_and_boxes(image_size=(896, 896))
    config.data.short_edges, config.data.longest = (448, 560, 672, 784, 896), 896
    config.data.multiple = 0  # all test images have the size of the training's
    config.test = ConfigDict({"val": {"split": "val", "box_rule": "all"}})
    config.model = parts.backbone(f"dinov2_{size}", f"hf:facebook/dinov2-{size}")
    config.method = ConfigDict(METHODS[parts.one_of(words, METHODS, "lora")])
    config.neck = ConfigDict(NECKS[parts.one_of(words, NECKS, "pyramid")])
    config.neck.outputs = 256
    config.head = parts.named(parts.one_of(words, HEADS, "gfl"), width=256, depth=4)
    config.head.strides = STRIDES
    config.task = parts.named("detection", layers=(SIZES[size] - 1,), norm=True)
    schedule = parts.named("cosine", warmup=0.025, end=0.0)
    config.optimizer = parts.adamw(1e-3, schedule, weight_decay=0.05, clip_norm=10.0)
    config.parallel, config.run = parts.parallel(), parts.run()
    config.eval = parts.boxes(batch=4)
    config.eval.every = 2000
    if "scenes" in words:
        scenes(config)
    return config


def scenes(config: ConfigDict) -> None:
    """The laptop's version: things of 5 to 20 px, and a backbone that has seen such scenes."""
    config.total_steps, config.batch_size = 600, 8
    config.data = parts.images_and_boxes(**parts.SMALL_THINGS, num_scenes=1024, max_boxes=64)
    config.data.multiple = 0
    config.test = ConfigDict({"clean": {"num_scenes": 128, "scene_seed": 900_002}})
    parts.micro_backbone(config)
    config.task.layers = (5,)
    config.neck.outputs = config.head.width = 64
    config.head.depth, config.head.strides = 2, (4, 8, 16, 32, 64)
    parts.float32(config)
    config.eval.update({"batch": 32, "most": 100})
    parts.look_up_every(config, 300)
