"""PAD downstream, segmentation of SODA's infrared: what `pad_msip` learned, fine-tuned.

Reproduces the chart of arXiv:2312.08192: 68.4 mIoU on SODA (21 classes, background among them) with
ViT-B; continued full pre-training reaches 67.0. Adapters stay in and everything trains: 14,400
steps of 8 crops of 512x512 pixels, UPerNet with 768 channels on deconvolved maps, layer decay 0.65.

    python -m vadapt.main --config=configs/pad_soda.py --workdir=runs/pad_soda --config.root=DATA \\
        --config.model.weights=mae_pretrain_vit_base_full.pth \\
        --config.model.adapter=runs/pad/adapter.safetensors
    python -m vadapt.predict --workdir=runs/pad_soda --images=PHOTOS --out=runs/pad_soda/predicted

DATA holds the folder soda with InfraredSemanticLabel in it, as it unpacks. Hardware: 2 GPUs of
24 GB; `python -m vadapt.plan` says what TPUs need. On a laptop, minutes:

    python -m vadapt.main --config=configs/pad_soda.py:scenes --workdir=runs/pad_soda_scenes

where `--config.model.adapter=runs/pad_scenes/adapter.safetensors` goes on from what
`configs/pad_msip.py:scenes` left.

Arguments (after a colon, joined by commas):
    pad | plain       with adapters (default), or without: --config.model.weights alone is the start
    scenes            the embedded data set and the micro backbone
"""

from ml_collections import ConfigDict

from configs import linear_dinov2, parts

WAYS = ("pad", "plain")
PYRAMID = (2, 1, 0, -1)  # doublings of the four maps: strides 4, 8, 16, 32


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = [word for word in arg.split(",") if word]
    unknown = set(words) - {*WAYS, "scenes"}
    if unknown:
        raise ValueError(
            f"unknown argument {sorted(unknown)}; allowed: {', '.join((*WAYS, 'scenes'))}"
        )
    config = paper("plain" not in words)
    if "scenes" in words:
        scenes(config)
    return config


def paper(adapted: bool) -> ConfigDict:
    """The released recipe for SODA."""
    config = linear_dinov2.folders("base")
    config.root = "data"  # the folder of all data sets
    config.total_steps = 14_400
    config.batch_size = 8
    config.trainable = "everything"

    data = config.data
    data.path, data.layout = config.get_ref("root") + "/soda", "soda"
    data.image_size = (512, 512)
    data.short_edges = tuple(range(256, 1025))  # 512, times 0.5 to 2
    data.longest = 4096
    data.mean, data.std = (96.9255 / 255,) * 3, (47.8976 / 255,) * 3
    data.test_longest, data.test_shortest = 2048, 512
    config.test = ConfigDict({"test": {"split": "test"}})

    model = config.model
    model.backbone, model.weights = "vit_base", "mae_pretrain_vit_base_full.pth"
    model.adapter = ""  # of a run of pad_msip on these weights; "": they are the start
    model.options = ConfigDict(
        {
            "positions": "learned",
            "relative_positions": "each",
            "layer_scale": 1.0,
            "drop_path_rate": 0.1,
            "final_norm": False,
        }
    )
    model.allow_missing = (r"blocks/\d+/.*(relative.*|scale/gamma)",)
    model.allow_unexpected = ("norm/.*",)
    config.method = ConfigDict({"name": "none"})
    if adapted:
        config.method = ConfigDict({"name": "patchwise_scale", "hidden": 64})
    config.task.layers, config.task.norm = (3, 5, 7, 11), False
    config.neck = ConfigDict({"name": "deconvolutions", "normed": False, "doublings": PYRAMID})
    config.head = ConfigDict({"name": "upernet", "channels": 768})

    optimizer = config.optimizer
    optimizer.base_lr = 1e-4 * 256 / config.batch_size
    optimizer.warmup_share, optimizer.power = 1500 / config.total_steps, 1.0
    optimizer.weight_decay, optimizer.layer_decay = 0.05, 0.65
    optimizer.undecayed = r".*/(bias|scale|gamma)"  # class token and all tables decay
    parts.look_up_every(config, 800)
    config.eval.crop, config.eval.batch = (512, 512), 1
    return config


def scenes(config: ConfigDict) -> None:
    """The laptop's version: infrared scenes by day, tested on others, with the micro backbone."""
    options = config.model.options.to_dict()
    linear_dinov2.scenes(config)
    config.total_steps = 600
    config.batch_size = 16
    config.data.view = "thermal"
    config.data.mean, config.data.std = (0.452,) * 3, (0.173,) * 3
    config.model.options = ConfigDict({**options, "positions": "sincos"})
    config.model.allow_unexpected = (r"(backbone/)?norm/.*", "decoder/.*")
    config.task.layers = (1, 2, 3, 5)
    config.head.update({"channels": 64, "auxiliary_channels": 64})
    config.optimizer.base_lr = 1e-3 * 256 / config.batch_size
    config.optimizer.warmup_share = 0.1
