"""Tasks: what is learnt, from which data, and how it is judged; one file each."""

from __future__ import annotations

import importlib
from typing import Any

from vadapt.errors import ConfigError, nearest

# config.task.name -> the class that trains it.
TASKS = {
    "mae": "vadapt.tasks.mae:MAETask",
    "milan": "vadapt.tasks.milan:MILANTask",
    "classification": "vadapt.tasks.classification:ClassificationTask",
    "multilabel": "vadapt.tasks.multilabel:MultilabelTask",
    "segmentation": "vadapt.tasks.segmentation:SegmentationTask",
}


def make_task(config: Any) -> Any:
    """The task that a config names.

    Raises:
        ConfigError: no such task.
    """
    name = config.task.name
    if name not in TASKS:
        raise ConfigError(f"unknown config.task.name {name!r}; {nearest(name, TASKS)}")
    module, attribute = TASKS[name].split(":")
    return getattr(importlib.import_module(module), attribute)(config)
