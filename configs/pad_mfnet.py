"""PAD downstream, segmentation of MFNet's infrared: what `pad_msip` learned, fine-tuned.

Reproduces the chart of arXiv:2312.08192: 47.2 mIoU on the validation and 48.8 on the test images of
MFNet (9 classes, background among them), from the thermal channel alone; continued full
pre-training reaches 46.4 and 47.7. The recipe is that of `pad_soda` with 9,800 steps.

    python -m vadapt.main --config=configs/pad_mfnet.py --workdir=runs/pad_mfnet \\
        --config.root=DATA --config.model.weights=mae_pretrain_vit_base_full.pth \\
        --config.model.adapter=runs/pad/adapter.safetensors

DATA holds the folder mfnet: thermal_imgs, the fourth channel of the images as they unpack; labels;
and train.txt, val.txt, test.txt. Hardware: as `pad_soda`. On a laptop, minutes, infrared scenes
tested on dirty ones:

    python -m vadapt.main --config=configs/pad_mfnet.py:scenes --workdir=runs/pad_mfnet_scenes

Arguments: those of `pad_soda`.
"""

from ml_collections import ConfigDict

from vadapt.configs import parts
from vadapt.configs.parts import pad


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = parts.words(arg, *pad.SEGMENTER_WORDS)
    config = ConfigDict({"total_steps": 9800, "batch_size": 8, "seed": 0, "baselines": False})
    pad.segmenter(config, "mfnet", words)
    config.test = ConfigDict({"val": {"split": "val"}, "test": {"split": "test"}})
    warmup = 1000 / config.total_steps
    schedule = parts.named("polynomial", warmup=warmup, power=1.0, end=0.0)
    config.optimizer = parts.adamw(
        1e-4, schedule, weight_decay=0.05, layer_decay=0.65, rules=pad.SEGMENTER_RULES
    )
    parts.look_up_every(config, 700)
    if "scenes" in words:
        pad.segmenter_scenes(config)
    return config
