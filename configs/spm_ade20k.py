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

from ml_collections import ConfigDict

from vadapt.configs import parts
from vadapt.configs.parts import spm


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = parts.words(arg, *spm.WORDS)
    config = ConfigDict({"total_steps": 160_000, "batch_size": 16, "seed": 0, "baselines": False})
    config.root = "data"  # the folder of all data sets
    config.data = parts.folders_and_masks(image_size=(512, 512), layout="ade20k")
    config.data.path = config.get_ref("root") + "/ade20k"
    config.data.short_edges = tuple(range(256, 1025))  # 512, times 0.5 to 2
    config.data.longest = config.data.test_longest = 2048
    config.data.test_shortest = 512
    config.test = ConfigDict({"val": {"split": "val"}})
    warmup = 1500 / config.total_steps
    schedule = parts.named("polynomial", warmup=warmup, power=1.0, end=0.0)
    config.optimizer = parts.adamw(1e-3, schedule, weight_decay=0.01)
    spm.system(config, words)
    config.parallel = parts.parallel()
    config.eval, config.run = parts.windows((512, 512), batch=1), parts.run()
    parts.look_up_every(config, 8000)
    if "scenes" in words:
        spm.scenes(config)
    return config
