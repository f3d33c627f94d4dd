"""Sections whose fields are the same in all recipes."""

from typing import Any

from ml_collections import ConfigDict


def named(name: str, **options: Any) -> ConfigDict:
    """What is chosen by a name (a method, a head, a schedule), with its options."""
    return ConfigDict({"name": name, **options})


def backbone(name: str, weights: str, **options: Any) -> ConfigDict:
    """A backbone with its weights; options are fields of its class."""
    section = ConfigDict({"backbone": name, "weights": weights, "options": ConfigDict(options)})
    section.allow_missing, section.allow_unexpected = (), ()  # patterns of names in the weights
    section.plan = ""  # how blocks run, such as "skip:2", see vadapt.nn.plans; "": each once
    return section


def micro_backbone(config: ConfigDict) -> None:
    """The backbone that comes with the package, for scenes of 64 px."""
    config.model = backbone("vit_micro", "vit_micro_scenes", positions="sincos")
    config.model.allow_unexpected = ("decoder/.*",)


def adamw(
    lr: float,
    schedule: ConfigDict,
    *,
    lr_batch: int = 0,
    weight_decay: float,
    layer_decay: float = 1.0,
    clip_norm: float = 0.0,
    rules: tuple[Any, ...] = (),
) -> ConfigDict:
    """AdamW; see `vadapt.training.optimizers.OptimizerSettings`."""
    section = named("adamw", lr=lr, lr_batch=lr_batch, schedule=schedule)
    section.beta1, section.beta2, section.epsilon = 0.9, 0.999, 1e-8
    section.weight_decay, section.layer_decay = weight_decay, layer_decay
    section.rules, section.clip_norm = rules, clip_norm
    return section


def sgd(
    lr: float,
    schedule: ConfigDict,
    *,
    weight_decay: float,
    clip_norm: float = 0.0,
    rules: tuple[Any, ...] = (),
) -> ConfigDict:
    """Gradient descent with momentum; see `vadapt.training.optimizers.OptimizerSettings`."""
    section = named("sgd", lr=lr, lr_batch=0, schedule=schedule, momentum=0.9, nesterov=False)
    section.weight_decay, section.layer_decay = weight_decay, 1.0
    section.rules, section.clip_norm = rules, clip_norm
    return section


def parallel() -> ConfigDict:
    """How a step computes; see `vadapt.training.step.StepOptions`."""
    section = ConfigDict()
    section.fsdp = 1
    section.step = step = ConfigDict()
    step.compute_dtype = "bfloat16"
    step.accumulate = 1
    step.remat = "none"
    step.scan = False  # over depth: compiles in half the time, takes more memory
    step.ema = 0.0
    # Weights are cast to the compute type where they are used: held in it, they are half as large
    # and their products the same. Whoever sets another compute type has that one here too.
    section.frozen_dtype = step.get_oneway_ref("compute_dtype")
    return section


def evaluation(**fields: Any) -> ConfigDict:
    """When and how a run is evaluated; see `vadapt.training.evaluation.Evaluations`."""
    section = ConfigDict()
    section.every = 0  # steps between evaluations while training
    section.best = ""  # a score, such as mean/miou, whose best checkpoint counts in the end
    section.patience = 0  # evaluations without a new best after which training ends
    section.num_pictures = 4
    section.num_worst = 16  # test images that --mode=evaluate shows, the worst first; 0: none
    section.update(fields)
    return section


def windows(crop: tuple[int, ...], *, batch: int) -> ConfigDict:
    """An evaluation of pixels, in windows of this size; (): of whole images."""
    section = evaluation(batch=batch, crop=crop)
    section.stride = ()  # from window to window; (): two thirds of one
    section.windows = 4  # of an image at a time
    section.scales, section.flip = (1.0,), False
    return section


def boxes(*, batch: int, **fields: Any) -> ConfigDict:
    """An evaluation of boxes; see `vadapt.tasks.settings.BoxEvaluation`."""
    section = evaluation(batch=batch)
    section.protocol = "coco"  # or "visdrone", "tiny_person"
    section.before, section.least, section.most = 1000, 0.05, 500  # see `DenseHead.detect`
    section.shown = 0.3  # the least score in pictures and predictions
    section.tile, section.tile_overlap = (), (0, 0)  # in which large images are predicted
    section.update(fields)
    return section


def run() -> ConfigDict:
    """What a run leaves behind, and how often."""
    section = ConfigDict()
    section.log_every = 20
    section.checkpoint_every = 1000
    section.pictures_every = 1000
    section.keep_last = 3
    section.data_changed = False  # True: go on though the training data is not what it was
    section.save_model = ""  # a dtype: also write every parameter to WORKDIR/model.safetensors
    section.wandb = False
    section.wandb_project, section.wandb_name, section.wandb_entity = "vadapt", "", ""
    return section


def look_up_every(config: ConfigDict, steps: int) -> None:
    """Evaluate, save and draw at once."""
    config.eval.every = config.run.checkpoint_every = config.run.pictures_every = steps


def float32(config: ConfigDict) -> None:
    """Everything in float32, as on a laptop."""
    config.parallel.step.compute_dtype = "float32"
