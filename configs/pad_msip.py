"""PAD on MSIP: a frozen MAE ViT learns infrared by patchwise-scale adapters (arXiv:2312.08192).

Reproduces the pre-training of the paper's main row: MAE ViT-B/16 (ImageNet-1k, 1600 epochs), then
100 epochs on the 178,756 infrared images of MSIP. Fine-tuned afterwards, the paper's chart shows
FLIR 45.2 AP, SODA 68.4 mIoU, MFNet 47.2 / 48.8 mIoU (val / test), about +-0.1; full continued
pre-training 44.4, 67.0, 46.4 / 47.7.

    python -m vadapt.datasets.msip RAW --out MSIP    # from the eight downloads; says what lacks
    python -m vadapt.data.roi_candidates MSIP        # once: where crops may be drawn
    python -m vadapt.main --config=configs/pad_msip.py --workdir=runs/pad \\
        --config.data.path=MSIP --config.model.weights=mae_pretrain_vit_base_full.pth

Hardware: the paper's effective batch of 4096 fits 8 GPUs of 80 GB or a v5e-16; on fewer devices
raise config.parallel.step.accumulate, which only draws other masks. On a laptop, minutes on two
cores, with a table at the end:

    python -m vadapt.main --config=configs/pad_msip.py:scenes --workdir=runs/pad_scenes

Arguments (after a colon, joined by commas):
    small | base | large     the backbone; base is the paper's
    scenes                   the embedded data set and the micro backbone
    pad                      the paradigm: adapters and patchwise gates (default)
    adapter_fixed_scale, adapter_learnable_scale     one scale per layer instead of gates
    full, full_layer_decay   continual pre-training of everything
    scratch                  everything, from random weights, 400 epochs
    frozen                   no training: the ImageNet weights as they are
"""

from ml_collections import ConfigDict

from vadapt.configs import parts
from vadapt.configs.parts import pad


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = parts.words(arg, *pad.WORDS)
    config = pad.pretraining(parts.one_of(words, pad.SIZES, "base"))
    config.total_steps, config.batch_size = 100 * pad.EPOCH, 4096
    schedule = parts.named("cosine", warmup=0.3, end=0.0)
    # The rate is for 256 images: 1.6e-3 at 4096.
    config.optimizer = parts.adamw(1e-4, schedule, lr_batch=256, weight_decay=0.05)
    config.optimizer.beta2, config.optimizer.rules = 0.95, pad.LATE_GATES
    if "scenes" in words:
        pad.scenes(config)
        pad.short_course(config)
    pad.PARADIGMS[parts.one_of(words, pad.PARADIGMS, "pad")](config)
    return config
