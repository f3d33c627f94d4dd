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

from configs import parts, spm_ade20k


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    config = spm_ade20k.get_config(arg)
    if "scenes" in arg.split(","):
        return config
    config.total_steps, config.batch_size = 80_000, 8
    data = config.data
    data.path, data.layout = config.get_ref("root") + "/cityscapes", "cityscapes"
    data.image_size = config.eval.crop = (512, 1024)
    data.short_edges = tuple(range(512, 2049))  # 1024, times 0.5 to 2
    data.longest = 4096
    data.test_longest, data.test_shortest = 2048, 1024
    config.optimizer.base_lr = 1e-3 * 256 / config.batch_size
    config.optimizer.warmup_share = 1500 / config.total_steps
    parts.look_up_every(config, 4000)
    return config
