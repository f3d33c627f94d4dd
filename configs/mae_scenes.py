"""MAE on the visible scenes: makes the micro backbone that vadapt ships as `vit_micro_scenes`.

    python -m vadapt.main --config=configs/mae_scenes.py --workdir=runs/mae_scenes
    cp runs/mae_scenes/model.safetensors vadapt/assets/vit_micro_scenes.safetensors

Half an hour on two CPU cores. The thermal view is never seen.
"""

from ml_collections import ConfigDict

from configs import pad_msip


def get_config(arg: str = "") -> ConfigDict:
    """The settings; the argument `scenes` is accepted and changes nothing."""
    if arg not in ("", "scenes"):
        raise ValueError(f"unknown argument {arg!r}; allowed: scenes")
    config = pad_msip.get_config("scenes,full")
    config.total_steps = 6000
    config.model.weights = ""
    config.data.view = "visible"
    config.data.num_scenes = 8192
    config.data.mean, config.data.std = 0.467, 0.198  # of the visible scenes
    config.optimizer.base_lr = 4e-3
    config.optimizer.warmup_share = 0.05
    config.run.save_model = "float16"
    config.eval.probe_view = "visible"
    config.run.pictures_every = config.run.checkpoint_every = 1000
    return config
