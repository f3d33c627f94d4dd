"""MAE on the visible scenes: makes the micro backbone that vadapt ships as `vit_micro_scenes`.

    python -m vadapt.main --config=configs/mae_scenes.py --workdir=runs/mae_scenes
    cp runs/mae_scenes/model.safetensors vadapt/assets/vit_micro_scenes.safetensors

Half an hour on two CPU cores. The thermal view is never seen.
"""

from ml_collections import ConfigDict

from vadapt.configs import parts
from vadapt.configs.parts import pad


def get_config(arg: str = "") -> ConfigDict:
    """The settings; the argument `scenes` is accepted and changes nothing."""
    parts.words(arg, "scenes")
    config = pad.pretraining("base")
    pad.scenes(config)
    config.total_steps, config.batch_size = 6000, 128
    config.trainable, config.method = "everything", parts.named("none")
    config.model.weights = ""
    config.data.view, config.data.num_scenes = "visible", 8192
    config.data.mean, config.data.std = 0.467, 0.198  # of the visible scenes
    schedule = parts.named("cosine", warmup=0.05, end=0.0)
    config.optimizer = parts.adamw(4e-3, schedule, lr_batch=256, weight_decay=0.05)
    config.optimizer.beta2 = 0.95
    config.eval.probe_view = "visible"
    config.run.save_model = "float16"
    config.run.pictures_every = config.run.checkpoint_every = 1000
    return config
