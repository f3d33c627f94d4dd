"""What recipes share: sections whose fields are the same in all, and how often a run looks up."""

from typing import Any

from ml_collections import ConfigDict


def parallel() -> ConfigDict:
    """How a step computes; see `vadapt.training.step.StepOptions`."""
    section = ConfigDict()
    section.fsdp = 1
    section.frozen_dtype = "bfloat16"
    section.step = step = ConfigDict()
    step.compute_dtype = "bfloat16"
    step.accumulate = 1
    step.remat = "none"
    step.scan = False  # over depth: compiles in half the time, takes more memory
    step.ema = 0.0
    return section


def evaluation(**fields: Any) -> ConfigDict:
    """When and how a run is evaluated; see `vadapt.training.evaluation.Evaluations`."""
    section = ConfigDict()
    section.every = 0  # steps between evaluations while training
    section.best = ""  # a score, such as mean/miou, whose best checkpoint counts in the end
    section.patience = 0  # evaluations without a new best after which training ends
    section.num_pictures = 4
    section.update(fields)
    return section


def run() -> ConfigDict:
    """What a run leaves behind, and how often."""
    section = ConfigDict()
    section.log_every = 20
    section.checkpoint_every = 1000
    section.pictures_every = 1000
    section.keep_last = 3
    section.save_model = ""  # a dtype: also write every parameter to WORKDIR/model.safetensors
    section.wandb = False
    section.wandb_project, section.wandb_name, section.wandb_entity = "vadapt", "", ""
    return section


def look_up_every(config: ConfigDict, steps: int) -> None:
    """Evaluate, save and draw at once."""
    config.eval.every = config.run.checkpoint_every = config.run.pictures_every = steps


def float32(config: ConfigDict) -> None:
    """Everything in float32, as on a laptop."""
    config.parallel.frozen_dtype = config.parallel.step.compute_dtype = "float32"
