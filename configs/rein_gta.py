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

from ml_collections import ConfigDict

from vadapt.configs import parts
from vadapt.configs.parts import rein

MORE = ("synthia", "urbansyn")


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = parts.words(arg, *rein.BACKBONES, *rein.WAYS, *MORE, *rein.TESTS, "scenes")
    config = ConfigDict({"total_steps": 40_000, "batch_size": 4, "seed": 42, "baselines": False})
    config.root = "data"  # the folder of all data sets
    config.data = parts.folders_and_masks(image_size=(512, 512), longest=2048)
    config.data.short_edges = tuple(int(51.2 * k) for k in range(5, 21))
    config.data.test_longest, config.data.test_shortest = 2072, 518  # where a set says no other
    trained = ["gta", *(word for word in words if word in MORE)]
    config.train = ConfigDict({name: rein.place(config, name) for name in trained})
    tests = [word for word in words if word in rein.TESTS]
    config.test = rein.test_sets(config, tests or ["cityscapes", "bdd100k", "mapillary"])
    schedule = parts.named("polynomial", warmup=0.0, power=0.9, end=0.0)
    config.optimizer = parts.adamw(1e-4, schedule, weight_decay=0.05, rules=rein.RULES)
    rein.system(config, words)
    config.parallel = parts.parallel()
    config.eval, config.run = parts.windows((512, 512), batch=1), parts.run()
    parts.look_up_every(config, 4000)
    if "scenes" in words:
        rein.scenes(config)
    return config
