"""SPM on Cityscapes: prompts between the stages of a frozen backbone (arXiv:2208.10159).

As `spm_ade20k`, with 80,000 steps of 8 crops of 512x1024 pixels. No number of the paper is known
where this was written (docs/spm.md). Of a ViT-L the matchers have 432,441 weights, 0.14 %.

    python -m vadapt.main --config=configs/spm_cityscapes.py --workdir=runs/spm_city \\
        --config.root=DATA

DATA holds the folder cityscapes as it unpacks. Hardware: a GPU of 40 GB; `python -m vadapt.plan`
says what TPUs need. On a laptop, minutes, from clean scenes to others at night, in fog and rain:

    python -m vadapt.main --config=configs/spm_cityscapes.py:scenes --workdir=runs/spm_scenes

Arguments: those of `spm_ade20k`.
"""

from ml_collections import ConfigDict

from vadapt.configs import parts
from vadapt.configs.parts import spm


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = parts.words(arg, *spm.WORDS)
    config = ConfigDict({"total_steps": 80_000, "batch_size": 8, "seed": 0, "baselines": False})
    config.root = "data"  # the folder of all data sets
    config.data = parts.folders_and_masks(image_size=(512, 1024), layout="cityscapes")
    config.data.path = config.get_ref("root") + "/cityscapes"
    config.data.short_edges = tuple(range(512, 2049))  # 1024, times 0.5 to 2
    config.data.longest = 4096
    config.data.test_longest, config.data.test_shortest = 2048, 1024
    config.test = ConfigDict({"val": {"split": "val"}})
    warmup = 1500 / config.total_steps
    schedule = parts.named("polynomial", warmup=warmup, power=1.0, end=0.0)
    config.optimizer = parts.adamw(1e-3, schedule, weight_decay=0.01)
    spm.system(config, words)
    config.parallel = parts.parallel()
    config.eval, config.run = parts.windows((512, 1024), batch=1), parts.run()
    parts.look_up_every(config, 4000)
    if "scenes" in words:
        spm.scenes(config)
    return config
