"""Methods and tasks that `adapters` compares: everything about a run but its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vadapt.configs import linear_dinov2, parts, vtab
from vadapt.data.pipeline import make_source

BATCH = 32
VALIDATION_SEED = 900_003  # of scenes that neither train nor test
RATES = (1.6e-2, 6.4e-2)  # that a search begins with, see `adapters.next_rate`
# Of methods that move the backbone's own matrices, and these at a tenth of the head's rate.
LOW_RATES = (4e-3, 1.6e-2)
GENTLY = {"rules": (("backbone/.*", {"rate": 0.1}),)}


class Method(NamedTuple):
    """What is done with the frozen backbone, and what trains; `optimizer` is changed by fields."""

    method: Mapping[str, Any]
    trainable: str = "default"
    optimizer: Mapping[str, Any] = {}
    rates: tuple[float, float] = RATES


class Task(NamedTuple):
    """What is learned, its score ("top1" of "clean/top1"), and the steps that all methods take."""

    config: Callable[[], Any]
    metric: str
    steps: int


def _plain(trainable: str) -> Method:
    return Method({"name": "none"}, trainable)


def _gentle(trainable: str, **optimizer: Any) -> Method:
    return Method({"name": "none"}, trainable, {**GENTLY, **optimizer}, LOW_RATES)


def _adapter(name: str, **options: Any) -> Method:
    return Method({"name": name, **options})


METHODS: dict[str, Method] = {
    "linear": _plain("head"),
    "biases": _plain("biases,head"),
    "norms": _plain("norm,head"),
    "VPT, shallow": _adapter("vpt", num_tokens=10, deep=False),
    "VPT, deep": _adapter("vpt", num_tokens=10, deep=True),
    "SSF": _adapter("ssf"),
    "SVF": _adapter("svf"),
    "LoRA": _adapter("lora", rank=8),
    "DoRA": _adapter("lora", rank=8, dora=True),
    "AdaptFormer": _adapter("adaptformer", hidden=16),
    "Houlsby": _adapter("houlsby", hidden=16),
    "Pfeiffer": _adapter("pfeiffer"),
    "patchwise scale": _adapter("patchwise_scale", hidden=16),
    "Pro-tuning": _adapter("pro_tuning"),
    "Rein": _adapter("rein", query_width=None, num_tokens=100),
    "SPM": _adapter("spm", hidden=64, steps=3),
    "last block": _gentle("partial-1,head"),
    "everything": _gentle("everything"),
    "everything, layer decay": _gentle("everything", layer_decay=0.75),
}


def objects() -> Any:
    """Which of 20 categories an object is, from a thousand colour pictures."""
    return vtab.get_config("scenes,linear")


def segmentation() -> Any:
    """Ten classes of pixels, from a thousand colour pictures."""
    return linear_dinov2.get_config("scenes,linear")


def infrared() -> Any:
    """The same classes from 256 infrared pictures, of which the backbone has never seen one."""
    config = linear_dinov2.get_config("scenes,linear")
    config.data.update({**parts.THERMAL, "num_scenes": 256})
    return config


TASKS: dict[str, Task] = {
    "objects": Task(objects, "top1", 200),
    "segmentation": Task(segmentation, "miou", 200),
    "infrared": Task(infrared, "miou", 200),
}


_KEPT: dict[str, Any] = {}


def kept(data: Any, fields: tuple[str, ...], classes: tuple[str, ...]) -> Any:
    """The scenes that `data` says, drawn once for all runs: that is a quarter of a run's time."""
    data = ConfigDict({**data, "source": data.kept})
    key = f"{data} {fields} {classes}"
    if key not in _KEPT:
        _KEPT[key] = make_source(data, fields, classes=classes)
    return _KEPT[key]


def config_of(task: Task, method: Method, rate: float, seed: int) -> Any:
    """The config of one run."""
    config = task.config()
    config.seed, config.total_steps, config.batch_size = seed, task.steps, BATCH
    config.data.kept, config.data.source = config.data.source, f"{__name__}:kept"
    config.method, config.trainable = ConfigDict(method.method), method.trainable
    config.optimizer.update({"lr": rate, **method.optimizer})
    scenes = {**config.test.clean.to_dict(), "scene_seed": VALIDATION_SEED}
    config.validation = ConfigDict({"validation": scenes})
    config.eval.every = 0
    parts.look_up_every(config, config.total_steps)
    return config
