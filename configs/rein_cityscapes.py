"""Rein from Cityscapes: trained by day in good weather, tested in fog, rain, snow and at night.

Reproduces the released recipe for 1024 pixels of arXiv:2312.04265: 40,000 steps of 8 crops of
1024x1024 of Cityscapes. DINOv2-L reaches 77.6 mIoU on the test set of ACDC (whose labels its server
keeps: `vadapt.predict` writes the images that it wants; `acdc` here is the validation set) and 84.2
on Cityscapes itself, as much as with everything trained. At 512 pixels (`small_crops`, as in
`rein_gta`) the paper has 65.0 on BDD100K and 72.3 on Mapillary; EVA-02-L 64.1 and 69.5.

    python -m vadapt.main --config=configs/rein_cityscapes.py --workdir=runs/rein_city \\
        --config.root=DATA

DATA holds the folders cityscapes and acdc as they unpack. Hardware: 4 GPUs of 24 GB for the
authors; `python -m vadapt.plan` says what TPUs need. On a laptop, from clean scenes to others:

    python -m vadapt.main --config=configs/rein_cityscapes.py:scenes --workdir=runs/rein_scenes

Arguments (after a colon, joined by commas): those of `rein_gta` but for its training sets, and
    small_crops    512 pixels and the schedule of `rein_gta`
"""

from ml_collections import ConfigDict

from vadapt.configs import parts
from vadapt.configs.parts import rein

LARGE_TESTS = {"cityscapes": (2048, 1024), "acdc": (1920, 1080)}  # longest, shortest side


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = parts.words(arg, *rein.BACKBONES, *rein.WAYS, *rein.TESTS, "small_crops", "scenes")
    config = ConfigDict({"total_steps": 40_000, "seed": 42, "baselines": False, "root": "data"})
    config.data = parts.folders_and_masks(test_longest=2072, test_shortest=518)
    schedule = parts.named("polynomial", warmup=0.0, power=0.9, end=0.0)
    config.optimizer = parts.adamw(1e-4, schedule, weight_decay=0.05, rules=rein.RULES)
    config.train = ConfigDict({"cityscapes": rein.place(config, "cityscapes", "train")})
    rein.system(config, words)
    config.parallel, config.run = parts.parallel(), parts.run()
    config.eval = parts.windows((512, 512), batch=1)
    parts.look_up_every(config, 4000)
    tests = [word for word in words if word in rein.TESTS]
    if "scenes" in words or "small_crops" in words:
        small_crops(config, tests or ["bdd100k", "mapillary"])
    else:
        large_crops(config, tests or ["cityscapes", "acdc"])
    if "scenes" in words:
        rein.scenes(config)
    return config


def small_crops(config: ConfigDict, tests: list[str]) -> None:
    """The recipe for 512 pixels: the schedule of `rein_gta`."""
    config.batch_size = 4
    config.data.update({"image_size": (512, 512), "longest": 2048})
    config.data.short_edges = tuple(int(51.2 * k) for k in range(5, 21))
    config.test = rein.test_sets(config, tests)


def large_crops(config: ConfigDict, tests: list[str]) -> None:
    """The recipe for 1024 pixels."""
    config.batch_size = 8
    config.data.image_size = config.eval.crop = (1024, 1024)
    config.data.short_edges = tuple(int(102.4 * k) for k in range(5, 21))
    config.data.longest = 4096
    config.optimizer.lr, config.optimizer.schedule.warmup = 6e-5, 0.25
    config.test = rein.test_sets(config, tests)
    for name, (longest, shortest) in LARGE_TESTS.items():
        if name in config.test:
            config.test[name].update({"test_longest": longest, "test_shortest": shortest})
