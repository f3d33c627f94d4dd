"""Images with labels: what a recognition task wants of `config.data` and `config.test`."""

from __future__ import annotations

from typing import Any

from vadapt.data.augment import ColourJitter, CropMix, RandomErasing
from vadapt.data.auto_augment import RandAugment, TrivialAugment
from vadapt.data.pipeline import Feed
from vadapt.data.transforms import (
    HorizontalFlip,
    RandomResizedCrop,
    Resize,
    ResizeCenterCrop,
    ResizeRandomCrop,
    Transform,
)
from vadapt.errors import ConfigError, nearest

FIELDS = ("image", "labels")
AUGMENTS = ("none", "crop", "resize_crop", "crop_mix", "rand_augment")


def augmentation(data: Any) -> list[Transform]:
    """The transforms of training images, by the name in `config.data.augment`.

    "crop_mix" is GKGNet's (mixed crops, flip, erasing, colours, TrivialAugment); "rand_augment"
    ViG's (random crop, flip, RandAugment, erasing); "crop" random crops and flips; "resize_crop"
    FRPT's (cut as for tests, but at a random place, flip, colors by a quarter); "none" resizes.
    Fields: `image_size`, `crop_area` (of random crops), `test_crop`.
    """
    if data.augment not in AUGMENTS:
        raise ConfigError(
            f"unknown config.data.augment {data.augment!r}; {nearest(data.augment, AUGMENTS)}"
        )
    size, area = tuple(data.image_size), tuple(data.crop_area)
    chains: dict[str, list[Transform]] = {
        "none": [Resize(size)],
        "crop": [RandomResizedCrop(size, area=area), HorizontalFlip()],
        "resize_crop": [
            ResizeRandomCrop(size, data.test_crop or 1.0),
            HorizontalFlip(),
            ColourJitter(0.25, 0.25, 0.25),
        ],
        "crop_mix": [
            CropMix(size),
            HorizontalFlip(),
            RandomErasing(),
            ColourJitter(),
            TrivialAugment(),
        ],
        "rand_augment": [
            RandomResizedCrop(size, area=area),
            HorizontalFlip(),
            RandAugment(),
            RandomErasing(0.25),
        ],
    }
    return chains[data.augment]


def training_feed(data: Any) -> Feed:
    """Images augmented as `augmentation` says, and their labels."""
    return Feed(augmentation(data), FIELDS)


def evaluation_feed(data: Any) -> Feed:
    """Images resized whole to `data.image_size`, and their labels.

    With `data.test_crop` above 0 this share of their shorter side is kept about the centre.
    """
    size = tuple(data.image_size)
    fit = ResizeCenterCrop(size, data.test_crop) if data.test_crop else Resize(size)
    return Feed([fit], FIELDS, optional=("areas",))
