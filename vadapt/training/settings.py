"""Settings that every recipe has: a mistyped one is refused, wherever it was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from typing import Any

from ml_collections import ConfigDict

from vadapt.data.pipeline import known_settings
from vadapt.errors import ConfigError, nearest
from vadapt.options import check, together
from vadapt.training.evaluation import EvaluationSettings
from vadapt.training.optimizers import learning_rate
from vadapt.training.step import StepOptions

# Settings beside the sections; `root` is a folder that paths of data refer to.
TOP = ("total_steps", "batch_size", "seed", "trainable", "baselines", "root")
DATA_SETS = ("train", "validation", "test", "streams")
SECTIONS = (
    *("data", *DATA_SETS, "model", "method", "neck", "head", "task", "eval", "full"),
    *("optimizer", "optimizers", "parallel", "run"),
)


@dataclass(frozen=True)
class ParallelSettings:
    """Fields of `config.parallel`; those of `step` are `StepOptions`.

    Args:
        fsdp: see `vadapt.sharding.make_mesh`.
        frozen_dtype: of frozen weights on the devices; recipes take `step.compute_dtype`. A step
            casts every frozen weight to that before its first use, those of norms, layer scales
            and position tables too, so that its numbers are the same whether they are held in it
            or in float32. Fixed tables (`Constant`) and running statistics are no frozen weights
            and stay in float32; evaluation in float32 sees frozen weights as they are held, and
            so does what moves teachers (`after_update`). "int8" holds matrices so, see
            `vadapt.quantization.store`; a step, evaluation and files see them rounded.
    """

    fsdp: int = 1
    frozen_dtype: str = "bfloat16"
    step: Any = None


@dataclass(frozen=True)
class RunSettings:
    """Fields of `config.run`: what a run leaves behind, and how often (in steps)."""

    log_every: int
    checkpoint_every: int
    pictures_every: int = 0
    keep_last: int = 3
    data_changed: bool = False
    save_model: str = ""
    wandb: bool = False
    wandb_project: str = "vadapt"
    wandb_name: str = ""
    wandb_entity: str = ""


def check_settings(config: Any, task: object) -> None:
    """Refuse a setting that nothing reads, or one of a wrong type.

    Options of the method, the neck and the head are checked where these are made.

    Args:
        task: a task or its class, whose `settings`, if it has them, say what its sections hold.

    Raises:
        ConfigError: names the setting and the nearest one.
    """
    declared = getattr(task, "settings", None)
    there = [key for key, value in config.items() if isinstance(value, ConfigDict)]
    _refuse_unknown([key for key in config if key not in there], TOP)
    if declared is not None:  # a task that says nothing of its sections may have any
        _refuse_unknown(there, (*SECTIONS, *declared))
    for settings in (config.optimizer, *config.get("optimizers", {}).values()):
        learning_rate(settings, 1, 1)  # which checks them
    sections: dict[str, tuple[Any, Any]] = {
        "parallel": (ParallelSettings, config.parallel),
        "parallel.step": (StepOptions, config.parallel.step),
        "run": (RunSettings, config.run),
    }
    for section, fields in (declared or {}).items():
        common = {"data": _data_fields(config.data.source), "eval": EvaluationSettings}
        sections[section] = (together(common.get(section, fields), fields), config[section])
    for kind in DATA_SETS if "data" in sections else ():
        for name, changes in config.get(kind, {}).items():
            sections[f"{kind}.{name}"] = (sections["data"][0], changes)
    for section, (fields, settings) in sections.items():
        check(section, f"config.{section}", fields, dict(settings), complete=False)


def _refuse_unknown(names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"nothing reads config.{name}; {nearest(name, known)}")


def _data_fields(source: str) -> Any:
    """What takes all that the pipeline and this source read, whatever its type."""
    names = known_settings(source)
    if names is None:
        return dict
    return make_dataclass("DataFields", [(name, Any, None) for name in dict.fromkeys(names)])
