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

from vadapt.configs import parts
from vadapt.configs.parts import pad


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = parts.words(arg, *pad.SEGMENTER_WORDS)
    config = ConfigDict({"total_steps": 14_400, "batch_size": 8, "seed": 0, "baselines": False})
    pad.segmenter(config, "soda", words)
    config.test = ConfigDict({"test": {"split": "test"}})
    warmup = 1500 / config.total_steps
    schedule = parts.named("polynomial", warmup=warmup, power=1.0, end=0.0)
    config.optimizer = parts.adamw(
        1e-4, schedule, weight_decay=0.05, layer_decay=0.65, rules=pad.SEGMENTER_RULES
    )
    parts.look_up_every(config, 800)
    if "scenes" in words:
        pad.segmenter_scenes(config)
    return config
