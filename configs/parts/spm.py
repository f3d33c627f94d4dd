"""SPM (arXiv:2208.10159): matchers between the stages of a frozen backbone, under UPerNet."""

from typing import Any

from ml_collections import ConfigDict

from vadapt.configs import parts

# Backbone, weights, options, and what a head looks at: blocks that end stages, or stages.
PATCH16 = {"patch_size": 16, "position_resize": "cubic"}
STAGES = (0, 1, 2, 3)
BACKBONES: dict[str, tuple[str, str, dict[str, Any], tuple[int, ...]]] = {
    "dinov2_l": ("dinov2_large", "hf:facebook/dinov2-large", PATCH16, (5, 11, 17, 23)),
    "dinov2_b": ("dinov2_base", "hf:facebook/dinov2-base", PATCH16, (2, 5, 8, 11)),
    "mae_b": ("vit_base", "hf:facebook/vit-mae-base", {"positions": "sincos"}, (2, 5, 8, 11)),
    "convnext_l": ("convnext_large", "hf:facebook/convnext-large-224-22k", {"normed": ()}, STAGES),
    "resnet101": ("resnet101", "hf:microsoft/resnet-101", {}, STAGES),
}
# What trains beside the head.
METHODS: dict[str, dict[str, Any]] = {
    "spm": {"name": "spm", "hidden": 64, "steps": 3, "loss_weight": 0.4},
    "rein": {"name": "rein", "query_width": None},
    "frozen": {"name": "none"},
    "full": {"name": "none"},
}
# Biases, norms and the classes' embeddings.
UNDECAYED = r".*bias|.*(norm|norms)(/.*|\d)|.*/(tokens(_[ab])?|scale|gamma|semantics/embed/kernel)"
# The head learns at a tenth of the matchers' rate.
RULES = (
    (r"(head|neck)/.*", {"rate": 0.1}),
    (UNDECAYED, {"decay": 0.0}),
    (".*", {"decay": 1.0}),
)
WORDS = (*BACKBONES, *METHODS, "scenes")


def system(config: ConfigDict, words: list[str]) -> None:
    """Backbone, method, neck and head, and the rules by which they train."""
    way = parts.one_of(words, METHODS, "spm")
    name, weights, options, layers = BACKBONES[parts.one_of(words, BACKBONES, "dinov2_l")]
    config.model = parts.backbone(name, weights, **options)
    config.task = parts.named("segmentation", layers=layers, norm=False)
    config.method = ConfigDict(METHODS[way])
    config.neck = parts.named("none" if layers == STAGES else "pyramid")
    config.head = parts.named("upernet", average_all=False)
    config.optimizer.rules = RULES
    config.full = {"optimizer": {"rules": (*RULES, (r"backbone/.*", {"rate": 0.01}))}}
    if way == "rein":
        config.optimizer.rules = (*RULES, (r"backbone/adapter/.*", {"rate": 0.1}))
    config.trainable = "everything" if way == "full" else "default"
    if way == "full":
        config.update(config.full)


def scenes(config: ConfigDict) -> None:
    """The laptop's version: a small head on the micro backbone, clean scenes to others."""
    config.total_steps, config.batch_size = 1000, 16
    config.data = parts.folders_and_masks(**parts.SCENES, num_scenes=1024)
    config.test = parts.test_scenes(256)
    parts.micro_backbone(config)
    config.task.layers = (1, 3, 4, 5)
    config.neck = parts.named("pyramid")
    config.head.update({"channels": 64, "auxiliary_channels": 64})
    config.optimizer.lr, config.optimizer.schedule.warmup = 3e-3, 0.05
    parts.float32(config)
    config.eval.update({"crop": (), "batch": 64})
    parts.look_up_every(config, 500)
