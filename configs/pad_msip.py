"""PAD on MSIP: a frozen MAE ViT learns infrared by patchwise-scale adapters (arXiv:2312.08192).

Reproduces the pre-training of the paper's main row: MAE ViT-B/16 (ImageNet-1k, 1600 epochs), then
100 epochs on the 178,756 infrared images of MSIP. Fine-tuned afterwards, the paper's chart shows
FLIR 45.2 AP, SODA 68.4 mIoU, MFNet 47.2 / 48.8 mIoU (val / test), about +-0.1; full continued
pre-training 44.4, 67.0, 46.4 / 47.7.

    python -m datasets.msip RAW --out MSIP           # from the eight downloads; says what lacks
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

from configs import parts

EPOCH = 43  # steps of 4096 images in 178,756, the last incomplete batch dropped
SIZES = ("small", "base", "large")


def get_config(arg: str = "") -> ConfigDict:
    """The settings; see the module's docstring for `arg`."""
    words = [word for word in arg.split(",") if word]
    unknown = set(words) - {*SIZES, *PARADIGMS, "scenes"}
    if unknown:
        raise ValueError(
            f"unknown argument {sorted(unknown)}; allowed: "
            f"{', '.join((*SIZES, *PARADIGMS, 'scenes'))}"
        )
    size = next((word for word in words if word in SIZES), "base")
    paradigm = next((word for word in words if word in PARADIGMS), "pad")
    config = paper(size)
    if "scenes" in words:
        scenes(config)
    PARADIGMS[paradigm](config)
    return config


def paper(size: str) -> ConfigDict:
    """PAD as published."""
    config = ConfigDict()
    config.total_steps = 100 * EPOCH
    config.batch_size = 4096
    config.seed = 0
    config.trainable = "default"  # adapters and the decoder; see vadapt.partition
    config.baselines = False  # train the `full` paradigm as well, in WORKDIR/full

    config.data = data = ConfigDict()
    data.source = "msip"
    data.path = "MSIP"
    data.tfds_name = ""
    data.split = "train"
    data.image_size = (224, 224)
    data.crop_area = (0.2, 1.0)
    data.roi_probability = 0.85  # of crops around candidates of objects; 0: crops anywhere
    data.roi_min_side = 60  # of such a crop, in pixels of the image
    data.mean, data.std = 0.3801, 0.1871  # of MSIP, all channels
    data.max_corrupt = 0.01
    data.view, data.num_scenes, data.scene_seed = "thermal", 4096, 0  # of the source `scenes`

    config.model = model = ConfigDict()
    model.backbone = f"vit_{size}"
    model.weights = f"mae_pretrain_vit_{size}_full.pth"
    model.allow_missing = ()
    model.allow_unexpected = ()

    config.method = method = ConfigDict()
    method.name = "patchwise_scale"
    method.hidden = 64
    method.scale = "patchwise"
    method.fusion = "concat"

    config.task = task = ConfigDict()
    task.name = "mae"
    task.mask_ratio = 0.75
    task.norm_pixels = True
    task.decoder_width, task.decoder_depth, task.decoder_heads = 512, 8, 16

    config.optimizer = optimizer = ConfigDict()
    optimizer.base_lr, optimizer.end_lr = 1e-4, 0.0  # for 256 images: 1.6e-3 at 4096
    optimizer.warmup_share = 0.3
    optimizer.beta1, optimizer.beta2, optimizer.epsilon = 0.9, 0.95, 1e-8
    optimizer.weight_decay = 0.05
    optimizer.layer_decay = 1.0
    optimizer.clip_norm = 0.0
    # The gates start after epoch round(0.6 * 100); until then every scale is 0.5.
    optimizer.late = ((r"backbone/blocks/\d+/mlp/gate/proj/kernel", 0.61),)

    config.parallel = parts.parallel()
    # What a v5e-16 needs, and faster there than remat: docs/plans.md.
    config.parallel.step.accumulate = 2

    config.eval = parts.evaluation(num_pictures=6)
    config.eval.probe_scenes = 512  # 0: no linear probe
    config.eval.probe_view = "thermal"

    config.run = parts.run()
    config.run.checkpoint_every, config.run.pictures_every = 5 * EPOCH, 20 * EPOCH
    return config


def scenes(config: ConfigDict) -> None:
    """The laptop's version: the same path on embedded infrared scenes, with the micro backbone."""
    config.total_steps = 900
    config.batch_size = 128
    config.data.source, config.data.path = "scenes", ""
    config.data.image_size = (64, 64)
    config.data.crop_area = (0.5, 1.0)
    config.data.roi_probability, config.data.roi_min_side = 0.0, 16
    config.model.backbone, config.model.weights = "vit_micro", "vit_micro_scenes"
    config.method.hidden = 64
    config.data.mean, config.data.std = 0.452, 0.173  # of the thermal scenes
    config.task.decoder_width, config.task.decoder_depth, config.task.decoder_heads = 64, 2, 2
    config.optimizer.base_lr = 1.6e-2
    config.optimizer.late = ()  # too few steps to wait for the gates
    config.optimizer.warmup_share = 0.1
    parts.float32(config)
    config.parallel.step.accumulate = 1
    config.run.checkpoint_every = config.run.pictures_every = 300


def pad(config: ConfigDict) -> None:
    """(d) in the paper: adapters with patchwise gates."""


def adapter_fixed_scale(config: ConfigDict) -> None:
    """Adapters with one fixed scale of 0.5 a layer."""
    config.method = ConfigDict({"name": "patchwise_scale", "hidden": config.method.hidden})
    config.method.scale = 0.5
    config.optimizer.late = ()


def adapter_learnable_scale(config: ConfigDict) -> None:
    """Adapters with one learned scale per layer, from 0.5."""
    adapter_fixed_scale(config)
    config.method = ConfigDict({**config.method, "scale": "learnable"})


def full(config: ConfigDict) -> None:
    """(c) in the paper: everything goes on training."""
    config.method = ConfigDict({"name": "none"})
    config.trainable = "everything"
    config.optimizer.late = ()


def full_layer_decay(config: ConfigDict) -> None:
    """(c') in the paper: early layers learn slower."""
    full(config)
    config.optimizer.layer_decay = 0.7


def scratch(config: ConfigDict) -> None:
    """(a) in the paper: everything, from random weights, four times as long."""
    full(config)
    config.model.weights = ""
    config.total_steps *= 4
    config.optimizer.warmup_share = 0.1


def frozen(config: ConfigDict) -> None:
    """(b) in the paper: no continued pre-training."""
    full(config)
    config.total_steps = 0


PARADIGMS = {
    function.__name__: function
    for function in (
        pad,
        adapter_fixed_scale,
        adapter_learnable_scale,
        full,
        full_layer_decay,
        scratch,
        frozen,
    )
}
