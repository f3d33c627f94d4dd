"""PAD (arXiv:2312.08192): its pre-training on infrared images, and the segmenter on top of it."""

from ml_collections import ConfigDict

from vadapt.configs import parts

SIZES = ("small", "base", "large")
EPOCH = 43  # steps of 4096 images in the 178,756 of MSIP, the last incomplete batch dropped
PYRAMID = (2, 1, 0, -1)  # doublings of the four maps: strides 4, 8, 16, 32
SEGMENTER_WORDS = ("pad", "plain", "scenes")


def pretraining(size: str) -> ConfigDict:
    """Data, model and method as published, on MAE; the recipe gives the course."""
    config = ConfigDict({"seed": 0})
    config.trainable = "default"  # adapters and the decoder; see vadapt.partition
    config.baselines = False  # train the `full` paradigm as well, in WORKDIR/full
    config.full = {"optimizer": {"rules": ()}}
    config.data = data = parts.infrared_images(image_size=(224, 224), crop_area=(0.2, 1.0))
    data.roi_probability = 0.85  # of crops around candidates of objects; 0: crops anywhere
    data.roi_min_side = 60  # of such a crop, in pixels of the image
    data.mean, data.std = 0.3801, 0.1871  # of MSIP, all channels
    config.model = parts.backbone(f"vit_{size}", f"mae_pretrain_vit_{size}_full.pth")
    config.method = parts.named("patchwise_scale", hidden=64, scale="patchwise", fusion="concat")
    config.task = task = parts.named("mae", mask_ratio=0.75, norm_pixels=True)
    task.decoder_width, task.decoder_depth, task.decoder_heads = 512, 8, 16
    config.parallel = parts.parallel()
    # What a v5e-16 needs, and faster there than remat: docs/plans.md.
    config.parallel.step.accumulate = 2
    config.eval = parts.evaluation(num_pictures=6)
    config.eval.probe_scenes, config.eval.probe_view = 512, "thermal"  # 0: no linear probe
    config.run = parts.run()
    config.run.checkpoint_every, config.run.pictures_every = 5 * EPOCH, 20 * EPOCH
    return config


# The gates start after epoch round(0.6 * 100); until then every scale is 0.5.
LATE_GATES = ((r"backbone/blocks/\d+/mlp/gate/proj/kernel", {"start": 0.61}),)


def scenes(config: ConfigDict) -> None:
    """The laptop's version: the same path on embedded infrared scenes, with the micro backbone."""
    config.data.update({"source": "scenes", "path": "", "image_size": (64, 64)})
    config.data.update({"crop_area": (0.5, 1.0), "roi_probability": 0.0, "roi_min_side": 16})
    config.data.mean, config.data.std = 0.452, 0.173  # of the thermal scenes
    config.model.backbone, config.model.weights = "vit_micro", "vit_micro_scenes"
    config.task.decoder_width, config.task.decoder_depth, config.task.decoder_heads = 64, 2, 2
    parts.float32(config)
    config.parallel.step.accumulate = 1


def short_course(config: ConfigDict) -> None:
    """Minutes on a laptop."""
    config.total_steps, config.batch_size = 900, 128
    config.optimizer.lr, config.optimizer.schedule.warmup = 1.6e-2, 0.1
    config.optimizer.rules = ()  # too few steps to wait for the gates
    config.run.checkpoint_every = config.run.pictures_every = 300


def pad(config: ConfigDict) -> None:
    """(d) in the paper: adapters with patchwise gates."""


def adapter_fixed_scale(config: ConfigDict) -> None:
    """Adapters with one fixed scale of 0.5 a layer."""
    config.method = parts.named("patchwise_scale", hidden=64, scale=0.5)
    config.optimizer.rules = ()


def adapter_learnable_scale(config: ConfigDict) -> None:
    """Adapters with one learned scale per layer, from 0.5."""
    config.method = parts.named("patchwise_scale", hidden=64, scale="learnable")
    config.optimizer.rules = ()


def full(config: ConfigDict) -> None:
    """(c) in the paper: everything goes on training."""
    config.method = parts.named("none")
    config.trainable = "everything"
    config.optimizer.rules = ()


def full_layer_decay(config: ConfigDict) -> None:
    """(c') in the paper: early layers learn slower."""
    full(config)
    config.optimizer.layer_decay = 0.7


def scratch(config: ConfigDict) -> None:
    """(a) in the paper: everything, from random weights, four times as long."""
    full(config)
    config.model.weights = ""
    config.total_steps *= 4
    config.optimizer.schedule.warmup = 0.1


def frozen(config: ConfigDict) -> None:
    """(b) in the paper: no continued pre-training."""
    full(config)
    config.total_steps = 0


_ADAPTED = (pad, adapter_fixed_scale, adapter_learnable_scale)
PARADIGMS = {each.__name__: each for each in (*_ADAPTED, full, full_layer_decay, scratch, frozen)}
WORDS = (*SIZES, *PARADIGMS, "scenes")


# Class token and all tables decay.
SEGMENTER_RULES = ((".*/(bias|scale|gamma)", {"decay": 0.0}), (".*", {"decay": 1.0}))


def segmenter(config: ConfigDict, layout: str, words: list[str]) -> None:
    """ViT-B with adapters that stay in, all of it trained, under UPerNet on deconvolved maps."""
    config.root = "data"  # the folder of all data sets
    config.data = parts.folders_and_masks(image_size=(512, 512), layout=layout)
    config.data.path = config.get_ref("root") + f"/{layout}"
    config.data.short_edges = tuple(range(256, 1025))  # 512, times 0.5 to 2
    config.data.longest, config.data.test_longest, config.data.test_shortest = 4096, 2048, 512
    config.data.mean, config.data.std = (96.9255 / 255,) * 3, (47.8976 / 255,) * 3  # of SODA
    config.trainable = "everything"
    config.full = {"optimizer": {"rules": (("backbone/.*", {"rate": 0.1}), *SEGMENTER_RULES)}}
    options = {"positions": "learned", "relative_positions": "each", "layer_scale": 1.0}
    options |= {"drop_path_rate": 0.1, "final_norm": False}
    config.model = parts.backbone("vit_base", "mae_pretrain_vit_base_full.pth", **options)
    config.model.adapter = ""  # of a run of pad_msip on these weights; "": they are the start
    config.model.allow_missing = (r"blocks/\d+/.*(relative.*|scale/gamma)",)
    config.model.allow_unexpected = ("norm/.*",)
    config.method = parts.named("none")
    if "plain" not in words:
        config.method = parts.named("patchwise_scale", hidden=64)
    config.task = parts.named("segmentation", layers=(3, 5, 7, 11), norm=False)
    config.neck = parts.named("deconvolutions", normed=False, doublings=PYRAMID)
    config.head = parts.named("upernet", channels=768)
    config.parallel, config.run = parts.parallel(), parts.run()
    config.eval = parts.windows((512, 512), batch=1)


def segmenter_scenes(config: ConfigDict) -> None:
    """The laptop's version: infrared scenes by day, tested on others, with the micro backbone."""
    config.total_steps, config.batch_size = 600, 16
    config.data = parts.folders_and_masks(**{**parts.SCENES, **parts.THERMAL}, num_scenes=1024)
    config.test = parts.test_scenes(256)
    config.model.backbone, config.model.weights = "vit_micro", "vit_micro_scenes"
    config.model.options.positions = "sincos"
    config.model.allow_unexpected = (r"(backbone/)?norm/.*", "decoder/.*")
    config.task.layers = (1, 2, 3, 5)
    config.head.update({"channels": 64, "auxiliary_channels": 64})
    config.optimizer.lr, config.optimizer.schedule.warmup = 1e-3, 0.1
    parts.float32(config)
    config.eval.update({"crop": (), "batch": 64})
    parts.look_up_every(config, 500)
