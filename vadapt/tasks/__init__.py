"""Tasks: what is learned, from which data, and how it is evaluated; one file each."""

from __future__ import annotations

from typing import Any

from flax import nnx

from vadapt.registry import Registry
from vadapt.training.task import Task

# config.task.name -> the class that trains it.
TASKS = Registry(
    "config.task.name",
    {
        "mae": "vadapt.tasks.mae:MAETask",
        "milan": "vadapt.tasks.milan:MILANTask",
        "classification": "vadapt.tasks.classification:ClassificationTask",
        "detection": "vadapt.tasks.detection:DetectionTask",
        "multilabel": "vadapt.tasks.multilabel:MultilabelTask",
        "retrieval": "vadapt.tasks.retrieval:RetrievalTask",
        "segmentation": "vadapt.tasks.segmentation:SegmentationTask",
    },
)


def make_task(config: Any) -> Task[nnx.Module]:
    """The task that a config names.

    Raises:
        ConfigError: no such task.
    """
    return TASKS[config.task.name](config)
