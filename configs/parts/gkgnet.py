"""GKGNet (arXiv:2308.14378): a graph of patches and labels on Pyramid ViG, or on a frozen ViT."""

from ml_collections import ConfigDict

from vadapt.configs import parts

SIDES = ("448", "576")
SIZES = {"tiny": "pvig_ti", "small": "pvig_s"}
WORDS = (*SIDES, *SIZES, "frozen", "linear", "scenes")
DROP_PATH = 0.1
FIRST_BLOCKS = (0, 2, 4, 10)  # of the stages, of 12 in all


def system(config: ConfigDict, words: list[str]) -> None:
    """Backbone, head and loss as released; with `frozen` the head alone, on maps of a DINOv2."""
    config.method = parts.named("none")
    config.head = parts.named("label_graph", groups=2, k=9, depth=1)
    config.task = task = parts.named("multilabel", load_head=False)  # weights hold the head, too
    task.loss = {"smoothing": 0.1, "asymmetric_weight": 10.0}
    task.loss.update({"gamma_positive": 0.0, "gamma_negative": 2.0, "clip": 0.05})
    if "frozen" in words:
        config.trainable = "default"
        config.model = parts.backbone("dinov2_base", "hf:facebook/dinov2-base")
        config.head.drop_path_rates = (0.0,) * 4
        task.layers, task.norm, task.train_norms = (2, 5, 8, 11), True, False
        config.data.image_size = tuple(side // 14 * 14 for side in config.data.image_size)
    else:
        config.trainable = "everything"
        size = SIZES[parts.one_of(words, SIZES, "small")]
        config.model = parts.backbone(size, "", groups=2, drop_path_rate=DROP_PATH)
        config.head.drop_path_rates = tuple(DROP_PATH * block / 11 for block in FIRST_BLOCKS)
        task.layers, task.norm, task.train_norms = (0, 1, 2, 3), False, True
    config.model.allow_unexpected = ("head/.*",)
    if "linear" in words:
        config.head = parts.named("linear")


def scenes(config: ConfigDict, words: list[str]) -> None:
    """The laptop's version: trained on clean scenes by day, tested there and on dirty ones."""
    config.total_steps, config.batch_size = 1000, 32
    config.data = parts.images_and_labels(**parts.SCENES, num_labels=20)
    config.data.update({"augment": "crop", "crop_area": (0.6, 1.0)})
    config.test = parts.test_scenes(512)
    if "frozen" in words:
        parts.micro_backbone(config)
        config.task.layers = (1, 2, 3, 5)
    else:
        config.model = parts.backbone("vig_micro", "", groups=2)
        config.model.allow_unexpected = ("head/.*",)
        if "linear" not in words:
            config.head.drop_path_rates = (0.0,) * 4
            config.head.k = 4  # of the four places that the last map has
    config.optimizer.lr = 2e-3
    config.optimizer.schedule.update({"warmup": 0.1, "drops": (0.8, 0.95)})
    parts.float32(config)
    config.eval.batch = 64
    parts.look_up_every(config, 500)
