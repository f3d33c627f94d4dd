"""PAD with MILAN on MSIP: the adapters of `pad_msip`, a second self-supervised method.

The encoder is MILAN's ViT-B/16 (ImageNet-1k, 400 epochs) and goes on predicting the features of
CLIP's ViT-B/16, on the 178,756 infrared images of MSIP, 100 epochs. The paper's code offers it and
runs it with MAE's numbers; its chart (arXiv:2312.08192) does not say which row is MILAN's, so that
there is no published score to expect. 26,709,760 parameters train, 1,226,496 of them are kept.

    python -m vadapt.main --config=configs/pad_milan_msip.py --workdir=runs/pad_milan \\
        --config.data.path=MSIP --config.model.weights=milan_vit_base_400e.pth \\
        --config.task.teacher_weights=clip_vit_b16.safetensors

MMSelfSup's MILAN file holds the teacher too: give it for both. Hardware: as `pad_msip`, and the
teacher's forward pass over all patches on top. On a laptop, where the shipped micro ViT teaches:

    python -m vadapt.main --config=configs/pad_milan_msip.py:scenes --workdir=runs/pad_milan_scenes

Arguments: those of `pad_msip`.
"""

from ml_collections import ConfigDict

from vadapt.configs import parts
from vadapt.configs.parts import pad


def get_config(arg: str = "") -> ConfigDict:
    """The settings of `pad_msip` with the same argument, with MILAN for MAE."""
    words = parts.words(arg, *pad.WORDS)
    config = pad.pretraining(parts.one_of(words, pad.SIZES, "base"))
    config.total_steps, config.batch_size = 100 * pad.EPOCH, 4096
    schedule = parts.named("cosine", warmup=0.3, end=0.0)
    # The rate is for 256 images: 1.6e-3 at 4096.
    config.optimizer = parts.adamw(1e-4, schedule, lr_batch=256, weight_decay=0.05)
    config.optimizer.beta2, config.optimizer.rules = 0.95, pad.LATE_GATES
    config.task.name = "milan"
    config.task.target = "features"  # or "pixels"
    config.task.semantic_masking = True
    config.task.teacher, config.task.teacher_weights = "clip_b16", "clip_vit_b16.safetensors"
    config.task.teacher_statistics = "data"  # infrared's, as published; "teacher": its own
    config.model.weights = config.model.weights.replace("mae_pretrain_", "milan_")
    # The teacher that MMSelfSup's file holds, and the settings of its data pipeline.
    config.model.allow_unexpected = (r"(visual|data_preprocessor|target_generator)\..*",)
    if "scenes" in words:
        pad.scenes(config)
        pad.short_course(config)
        config.task.teacher, config.task.teacher_weights = "vit_micro", "vit_micro_scenes"
        # The shipped decoder is MAE's: what fits of it is taken, blocks and prediction are new.
        config.model.allow_missing = config.model.allow_unexpected = (r"decoder/(blocks|pred)/.*",)
    pad.PARADIGMS[parts.one_of(words, pad.PARADIGMS, "pad")](config)
    if not config.model.weights:
        config.model.allow_missing = config.model.allow_unexpected = ()
    return config
