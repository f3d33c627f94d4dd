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

from configs import rein_gta

LARGE_TESTS = {"cityscapes": (2048, 1024), "acdc": (1920, 1080)}  # longest, shortest side


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = [word for word in arg.split(",") if word]
    if set(words) & set(rein_gta.MORE):
        raise ValueError(f"{arg!r}: training sets besides GTA5 are arguments of rein_gta")
    small = "small_crops" in words
    words = [word for word in words if word != "small_crops"]
    if not set(words) & set(rein_gta.TESTS):
        words += ["bdd100k", "mapillary"] if small else ["cityscapes", "acdc"]
    config = rein_gta.get_config(",".join(words))
    if "scenes" in words:
        return config
    city = rein_gta.place(config, "cityscapes", "train")
    config.train = ConfigDict({"cityscapes": city})
    if not small:
        large_crops(config)
    return config


def large_crops(config: ConfigDict) -> None:
    """The recipe for 1024 pixels."""
    config.batch_size = 8
    config.data.image_size = config.eval.crop = (1024, 1024)
    config.data.short_edges = tuple(int(102.4 * k) for k in range(5, 21))
    config.data.longest = 4096
    config.optimizer.base_lr = 6e-5 * 256 / config.batch_size
    config.optimizer.warmup_share = 0.25
    for name, (longest, shortest) in LARGE_TESTS.items():
        if name in config.test:
            config.test[name].update({"test_longest": longest, "test_shortest": shortest})
