"""SPM on ADE20K: prompts between the stages of a frozen backbone (arXiv:2208.10159).

No number of the paper is known where this was written (docs/spm.md), and the recipe is what such
comparisons commonly use: 160,000 steps of 16 crops of 512x512 pixels, UPerNet, 1e-3 for the
matchers and 1e-4 for the head. Of a ViT-L the matchers have 483,138 weights, 0.16 %. Beside it the
same with nothing between the stages (`frozen`), everything trained (`full`), and Rein (`rein`).

    python -m vadapt.main --config=configs/spm_ade20k.py --workdir=runs/spm_ade --config.root=DATA
    python -m vadapt.predict --workdir=runs/spm_ade --images=PHOTOS --out=runs/spm_ade/predicted

DATA holds the folder ade20k, which is ADEChallengeData2016 as it unpacks. Hardware: a GPU of 40 GB;
`python -m vadapt.plan` says what TPUs need. On a laptop, minutes, from clean scenes to others:

    python -m vadapt.main --config=configs/spm_ade20k.py:scenes --workdir=runs/spm_scenes

Arguments (after a colon, joined by commas):
    dinov2_l | dinov2_b | mae_b | convnext_l | resnet101    the backbone; dinov2_l is the default
    spm | rein | frozen | full          what trains beside the head; spm is the default
    scenes                              the embedded data set and the micro backbone
"""

from typing import Any

from ml_collections import ConfigDict

from configs import linear_dinov2, parts

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
WAYS = ("spm", "rein", "frozen", "full")
# Biases, norms and the classes' embeddings.
UNDECAYED = r".*bias|.*(norm|norms)(/.*|\d)|.*/(tokens(_[ab])?|scale|gamma|semantics/embed/kernel)"


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = [word for word in arg.split(",") if word]
    allowed = (*BACKBONES, *WAYS, "scenes")
    unknown = set(words) - set(allowed)
    if unknown:
        raise ValueError(f"unknown argument {sorted(unknown)}; allowed: {', '.join(allowed)}")
    backbone = next((word for word in words if word in BACKBONES), "dinov2_l")
    way = next((word for word in words if word in WAYS), "spm")
    config = common(backbone)
    trains(config, way)
    if "scenes" in words:
        scenes(config)
    return config


def common(backbone: str) -> ConfigDict:
    """All but what trains."""
    config = linear_dinov2.folders("large")
    config.root = "data"  # the folder of all data sets
    config.total_steps = 160_000
    data = config.data
    data.path, data.layout = config.get_ref("root") + "/ade20k", "ade20k"
    data.image_size = (512, 512)
    data.short_edges = tuple(range(256, 1025))  # 512, times 0.5 to 2
    data.longest = 2048
    data.test_longest, data.test_shortest = 2048, 512

    model, task = config.model, config.task
    model.backbone, model.weights, options, task.layers = BACKBONES[backbone]
    model.options = ConfigDict(options)
    task.norm = False
    config.neck = ConfigDict({"name": "none" if task.layers == STAGES else "pyramid"})
    config.head = ConfigDict({"name": "upernet", "average_all": False})

    optimizer = config.optimizer
    optimizer.base_lr = 1e-3 * 256 / config.batch_size
    optimizer.warmup_share, optimizer.power = 1500 / config.total_steps, 1.0
    optimizer.weight_decay = 0.01
    optimizer.undecayed = UNDECAYED
    parts.look_up_every(config, 8000)
    config.eval.crop, config.eval.batch = (512, 512), 1
    return config


def trains(config: ConfigDict, way: str) -> None:
    """What trains beside the head, and how fast; the head at a tenth of the rate."""
    slower = ((r"(head|neck)/.*", 0.1),)
    config.method = ConfigDict({"name": "none"})
    config.full = ConfigDict({"optimizer": {"rates": (*slower, (r"backbone/.*", 0.01))}})
    config.optimizer.rates = slower
    if way == "spm":
        config.method = ConfigDict({"name": "spm", "hidden": 64, "steps": 3, "loss_weight": 0.4})
    if way == "rein":
        config.method = ConfigDict({"name": "rein", "query_width": None})
        config.optimizer.rates = (*slower, (r"backbone/adapter/.*", 0.1))
    if way == "full":
        config.trainable = "everything"
        config.update(config.full)


def scenes(config: ConfigDict) -> None:
    """The laptop's version: a small head on the micro backbone, clean scenes to others."""
    linear_dinov2.scenes(config)
    config.total_steps = 1000
    config.batch_size = 16
    config.task.layers = (1, 3, 4, 5)
    config.neck = ConfigDict({"name": "pyramid"})
    config.head.update({"channels": 64, "auxiliary_channels": 64})
    config.optimizer.base_lr = 3e-3 * 256 / config.batch_size
    config.optimizer.warmup_share = 0.05
