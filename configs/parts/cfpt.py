"""CFPT's detectors: an ImageNet ResNet whose later stages train, the neck, a dense head."""

from ml_collections import ConfigDict

from vadapt.configs import parts

DEPTHS = {"r18": 18, "r50": 50, "r101": 101}
NECKS = {
    "cfpt": {"name": "cfpt"},
    "fpn": {"name": "fpn", "start": 1, "extra": 2, "extra_of": "output"},
}
# The rate of SGD for two images.
HEADS = {"retinanet": 2.5e-3, "gfl": 1e-2, "atss": 2.5e-3, "fsaf": 2.5e-3}
WORDS = (*DEPTHS, *NECKS, *HEADS, "scenes")
# Batch norms and biases decay, too; of CFPT neither layer norms nor tables of positions.
DECAYS = ((".*", {"decay": 1.0}),)
RULES = {
    "cfpt": ((".*/(norms/.*|bias/(table|levels))", {"decay": 0.0}), *DECAYS),
    "fpn": DECAYS,
}


def detector(config: ConfigDict, words: list[str], head: str) -> None:
    """Model, head and optimizer; the recipe gives data and course.

    Args:
        head: by default.
    """
    depth = DEPTHS[parts.one_of(words, DEPTHS, "r18")]
    name = parts.one_of(words, HEADS, head)
    # Stem and first stage are frozen; norms of the backbone keep their statistics.
    config.trainable = "backbone/stages/[123]/.*,head"
    config.baselines = False
    config.model = parts.backbone(f"resnet{depth}", f"hf:timm/resnet{depth}.tv_in1k")
    config.method = parts.named("none")
    config.neck = ConfigDict(NECKS[parts.one_of(words, NECKS, "cfpt")])
    config.neck.outputs = 256
    config.head = parts.named(name, width=256, depth=4)
    config.task = parts.named("detection", layers=(0, 1, 2, 3), norm=False)
    schedule = parts.named("staircase", drops=(8 / 12, 11 / 12), warmup=0.0, start=1e-3)
    config.optimizer = parts.sgd(
        HEADS[name], schedule, weight_decay=1e-4, clip_norm=10.0, rules=RULES[config.neck.name]
    )
    config.parallel, config.run = parts.parallel(), parts.run()
    config.eval = parts.boxes(batch=1)


def scenes(config: ConfigDict) -> None:
    """The laptop's version: things of 5 to 20 px in the embedded scenes, a narrow ResNet alone."""
    config.total_steps, config.batch_size = 600, 8
    config.data = parts.images_and_boxes(**parts.SMALL_THINGS, num_scenes=1024, max_boxes=64)
    config.test = ConfigDict({"clean": {"num_scenes": 128, "scene_seed": 900_002}})
    config.trainable, config.model.weights = "everything", ""
    config.model.options.base_width = 16
    config.neck.outputs = config.head.width = 64
    config.head.depth = 2
    if config.head.name == "retinanet":
        config.head.base_scale = 1.0  # anchors from 8 px on
    config.optimizer.lr, config.optimizer.schedule.warmup = 1e-2, 0.05
    parts.float32(config)
    config.eval.update({"protocol": "coco", "batch": 32, "most": 100, "tile": ()})
    parts.look_up_every(config, 300)
