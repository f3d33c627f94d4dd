"""Rein (arXiv:2312.04265): the systems of its table, and the data sets that it is tested on."""

from typing import Any

from ml_collections import ConfigDict

from vadapt.configs import parts

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
# What images are resized to fit (longest, shortest side) as the paper tests on them.
TESTS = {
    "cityscapes": (1024, 512),
    "bdd100k": (1280, 720),
    "mapillary": (1024, 512),
    "acdc": (960, 540),
}
# Norms, tokens, and embeddings of queries and levels; all else decays, biases too.
UNDECAYED = r".*(norm|norms)(/.*|\d)|.*/(tokens(_[ab])?|scale|level_embed|query_embed)"
RULES = ((UNDECAYED, {"decay": 0.0}), (".*", {"decay": 1.0}))


def system(config: ConfigDict, words: list[str]) -> None:
    """Backbone, Rein or not, neck and head, as released."""
    backbone = parts.one_of(words, BACKBONES, "dinov2_l")
    way = parts.one_of(words, WAYS, "rein")
    name, weights, options, layers = BACKBONES[backbone]
    config.model = parts.backbone(name, weights, **options)
    config.task = parts.named("segmentation", layers=layers, norm=False)
    start = "eva02" if backbone == "eva02_l" else "released"
    config.method = parts.named("rein", start=start, query_width=256)
    if backbone == "sam_h":
        config.method.layers = layers
    config.neck = parts.named("deconvolutions" if backbone == "clip_l" else "pyramid")
    config.head = parts.named("mask2former", linked=True)
    config.head.replace_query_feat = backbone not in ("clip_l", "sam_h")
    without_rein: dict[str, Any] = {"head": {"linked": False}}
    if backbone == "clip_l":
        without_rein["neck"] = {"name": "multi_level"}
    backbone_slower = (("backbone/.*", {"rate": 0.1}), *RULES)
    config.full = {"optimizer": {"rules": backbone_slower}, **without_rein}
    config.trainable = "everything" if way == "full" else "default"
    if way != "rein":
        config.method = parts.named("none")
        config.update(config.full if way == "full" else without_rein)


def place(config: ConfigDict, name: str, split: str = "") -> dict[str, Any]:
    """Where a data set lies and how, as what differs from `config.data`."""
    return {"path": config.get_ref("root") + f"/{name}", "layout": name, "split": split}


def test_sets(config: ConfigDict, names: list[str]) -> ConfigDict:
    """Validation sets, whose images are resized to fit (longest, shortest side)."""
    found = ConfigDict()
    for name in names:
        longest, shortest = TESTS[name]
        found[name] = {"test_longest": longest, "test_shortest": shortest}
        found[name].update(place(config, name, "val"))
    return found


def scenes(config: ConfigDict) -> None:
    """The laptop's version: small heads on the micro backbone, clean scenes to others."""
    config.total_steps, config.batch_size = 1000, 16
    config.data = parts.folders_and_masks(**parts.SCENES, num_scenes=1024)
    config.test = parts.test_scenes(256)
    config.train = ConfigDict()
    parts.micro_backbone(config)
    config.task.layers = (1, 3, 4, 5)
    if "layers" in config.method:
        config.method.layers = None
    if config.method.name == "rein":
        config.method.query_width = 64
    config.neck = parts.named("pyramid")
    if "neck" in config.full:
        del config.full.neck
    small = {"width": 64, "outputs": 64, "depth": 3, "num_heads": 4, "hidden": 128}
    small |= {"encoder_depth": 1, "encoder_hidden": 128, "num_groups": 8}
    config.head.update({**small, "loss_points": 512})
    config.optimizer.lr = 1e-3
    parts.float32(config)
    config.eval.update({"crop": (), "batch": 64})
    parts.look_up_every(config, 500)
