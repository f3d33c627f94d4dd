"""Rein from GTA5 to real streets: a frozen foundation model learns from a game (arXiv:2312.04265).

Reproduces the paper's main table: 40,000 steps of 4 crops of 512x512 pixels of GTA5, tested on
Cityscapes, BDD100K and Mapillary Vistas, of which nothing is seen. mIoU in percent, in this order:

    backbone   Rein                     everything trained       frozen
    DINOv2-L   66.4 60.4 66.1 / 64.3    63.7 57.4 64.2 / 61.7    63.3 56.1 63.9 / 61.1
    EVA-02-L   65.3 60.5 64.9 / 63.6    62.1 56.2 64.6 / 60.9    56.5 53.6 58.6 / 56.2
    SAM-H      59.6 52.0 62.1 / 57.9    57.6 51.7 61.5 / 56.9    57.0 47.1 58.4 / 54.2
    CLIP-L     57.1 54.7 60.5 / 57.4    51.3 47.6 54.3 / 51.1    53.7 48.7 55.0 / 52.4

GTA5 and SYNTHIA together give 68.1 60.5 67.1 / 65.2 with DINOv2-L. CLIP's row is the paper's; its
released code, which this follows, is said to reach 55.8. Mapillary is read as it unpacks; the paper
halves it beforehand (the layout `mapillary_half`).

    python -m vadapt.main --config=configs/rein_gta.py --workdir=runs/rein_gta --config.root=DATA
    python -m vadapt.predict --workdir=runs/rein_gta --images=PHOTOS --out=runs/rein_gta/predicted

DATA holds the folders gta, cityscapes, bdd100k and mapillary as they unpack; see
docs/segmentation_data.md. Hardware: 9.5 h on a GPU of 24 GB for the paper (10 GB used);
docs/rein.md has what a TPU v5e-16 does. On a laptop, minutes, from clean scenes to others at night:

    python -m vadapt.main --config=configs/rein_gta.py:scenes --workdir=runs/rein_scenes

Arguments (after a colon, joined by commas):
    dinov2_l | clip_l | eva02_l | sam_h             the backbone; dinov2_l is the default
    rein | frozen | full                            what trains beside the head; rein is the default
    synthia, urbansyn                               trained on besides GTA5
    cityscapes, bdd100k, mapillary, acdc            what is tested on; by default the first three
    scenes                                          the embedded data set and the micro backbone
"""

from typing import Any

from ml_collections import ConfigDict

from configs import linear_dinov2, parts

# Weights, options of the backbone, numbers of the tapped blocks.
L24 = (7, 11, 15, 23)
PATCH16 = {"patch_size": 16, "position_resize": "cubic"}
BACKBONES: dict[str, tuple[str, str, dict[str, Any], tuple[int, ...]]] = {
    "dinov2_l": ("dinov2_large", "hf:facebook/dinov2-large", PATCH16, L24),
    "clip_l": ("clip_large", "hf:openai/clip-vit-large-patch14", {"patch_size": 16}, L24),
    "eva02_l": ("eva02_large", "eva02_L_pt_m38m_p14.pt", PATCH16, L24),
    "sam_h": ("sam_huge", "hf:facebook/sam-vit-huge", {"neck": None}, (7, 15, 23, 31)),
}
WAYS = ("rein", "frozen", "full")
MORE = ("synthia", "urbansyn")
# What images are resized to fit (longest, shortest side) as the paper tests on them.
TESTS = {
    "cityscapes": (1024, 512),
    "bdd100k": (1280, 720),
    "mapillary": (1024, 512),
    "acdc": (960, 540),
}
# Norms, tokens, and embeddings of queries and levels; all else decays, biases too.
UNDECAYED = r".*(norm|norms)(/.*|\d)|.*/(tokens(_[ab])?|scale|level_embed|query_embed)"


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = [word for word in arg.split(",") if word]
    allowed = (*BACKBONES, *WAYS, *MORE, *TESTS, "scenes")
    unknown = set(words) - set(allowed)
    if unknown:
        raise ValueError(f"unknown argument {sorted(unknown)}; allowed: {', '.join(allowed)}")
    backbone = next((word for word in words if word in BACKBONES), "dinov2_l")
    way = next((word for word in words if word in WAYS), "rein")
    config = paper(backbone, way)
    trained = ["gta", *(word for word in words if word in MORE)]
    config.train = ConfigDict({name: place(config, name) for name in trained})
    tests = [word for word in words if word in TESTS] or ("cityscapes", "bdd100k", "mapillary")
    config.test = ConfigDict({name: test_set(config, name, TESTS[name]) for name in tests})
    if "scenes" in words:
        scenes(config)
    return config


def place(config: ConfigDict, name: str, split: str = "") -> dict[str, Any]:
    """Where a data set lies and how, as what differs from `config.data`."""
    return {"path": config.get_ref("root") + f"/{name}", "layout": name, "split": split}


def test_set(config: ConfigDict, name: str, fit: tuple[int, int]) -> dict[str, Any]:
    """A validation set whose images are resized to fit (longest, shortest side)."""
    sides = {"test_longest": fit[0], "test_shortest": fit[1]}
    return {**place(config, name, "val"), **sides}


def paper(backbone: str, way: str) -> ConfigDict:
    """The released recipe for 512 pixels."""
    config = linear_dinov2.folders("large")
    config.root = "data"  # the folder of all data sets
    config.total_steps = 40_000
    config.batch_size = 4
    config.seed = 42

    data = config.data
    data.image_size = (512, 512)
    data.short_edges = tuple(int(51.2 * k) for k in range(5, 21))
    data.longest = 2048

    model, task = config.model, config.task
    model.backbone, model.weights, options, task.layers = BACKBONES[backbone]
    model.options = ConfigDict(options)
    task.norm = False
    start = "eva02" if backbone == "eva02_l" else "released"
    config.method = ConfigDict({"name": "rein", "start": start, "query_width": 256})
    if backbone == "sam_h":
        config.method.layers = task.layers
    config.neck = ConfigDict({"name": "deconvolutions" if backbone == "clip_l" else "pyramid"})
    config.head = head = ConfigDict({"name": "mask2former", "linked": True})
    head.replace_query_feat = backbone not in ("clip_l", "sam_h")

    optimizer = config.optimizer
    optimizer.base_lr = 1e-4 * 256 / config.batch_size
    optimizer.warmup_share, optimizer.power = 0.0, 0.9
    optimizer.weight_decay = 0.05
    optimizer.undecayed = UNDECAYED
    parts.look_up_every(config, 4000)
    config.eval.crop, config.eval.batch = (512, 512), 1
    without_rein: dict[str, Any] = {"head": {"linked": False}}
    if backbone == "clip_l":
        without_rein["neck"] = {"name": "multi_level"}
    config.full.update(without_rein)
    if way != "rein":
        config.method = ConfigDict({"name": "none"})
        config.update(without_rein)
    if way == "full":
        config.trainable = "everything"
        config.update(config.full)
    return config


def scenes(config: ConfigDict) -> None:
    """The laptop's version: small heads on the micro backbone, clean scenes to others."""
    linear_dinov2.scenes(config)
    config.train = ConfigDict()
    config.total_steps = 1000
    config.batch_size = 16
    config.task.layers = (1, 3, 4, 5)
    if "layers" in config.method:
        config.method.layers = None
    if config.method.name == "rein":
        config.method.query_width = 64
    config.neck = ConfigDict({"name": "pyramid"})
    if "neck" in config.full:
        del config.full.neck
    small = {"width": 64, "outputs": 64, "depth": 3, "num_heads": 4, "hidden": 128}
    small |= {"encoder_depth": 1, "encoder_hidden": 128, "num_groups": 8}
    small["loss_points"] = 512
    config.head.update(small)
    config.optimizer.base_lr = 1e-3 * 256 / config.batch_size
