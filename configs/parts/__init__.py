"""What recipes are made of: sections whose fields are the same in all, arguments, scenes.

A part gives a section every field that it has, with the usual value; what a recipe is about, it
gives itself. Systems that several recipes train are modules of their own: `parts.rein` and so on.
"""

from vadapt.configs.parts.arguments import one_of, words
from vadapt.configs.parts.data import (
    IMAGENET,
    SCENES,
    SMALL_THINGS,
    THERMAL,
    folders_and_masks,
    images_and_boxes,
    images_and_labels,
    infrared_images,
    test_scenes,
)
from vadapt.configs.parts.sections import (
    adamw,
    backbone,
    boxes,
    evaluation,
    float32,
    look_up_every,
    micro_backbone,
    named,
    parallel,
    run,
    sgd,
    windows,
)

__all__ = [
    "IMAGENET",
    "SCENES",
    "SMALL_THINGS",
    "THERMAL",
    "adamw",
    "backbone",
    "boxes",
    "evaluation",
    "float32",
    "folders_and_masks",
    "images_and_boxes",
    "images_and_labels",
    "infrared_images",
    "look_up_every",
    "micro_backbone",
    "named",
    "one_of",
    "parallel",
    "run",
    "sgd",
    "test_scenes",
    "windows",
    "words",
]
