"""Images with labelled pixels: what a segmentation wants of `config.data` and `config.test`."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vadapt.data import pipeline, scenes
from vadapt.data.label_maps import IGNORE
from vadapt.data.layouts import LAYOUTS
from vadapt.data.photometric import PhotometricDistortion
from vadapt.data.pipeline import Feed
from vadapt.data.segmentation_transforms import (
    PadTo,
    RandomCrop,
    RandomShortEdge,
    ResizedCrop,
    ResizeTo,
    ResizeToFit,
)
from vadapt.data.transforms import HorizontalFlip, Transform
from vadapt.errors import ConfigError
from vadapt.tasks import inputs

READS = ("image", "mask")


def training_feed(data: Any) -> Feed:
    """Images resized, cropped, flipped half of the time, colours distorted; and their "size".

    Fields of `config.data`: `image_size` (of crops), `short_edges` (to one of which images are
    resized at random; none: as they are) and `longest`, `max_share` (of one class in a crop),
    `distort`, `mean`; `augment` (False: whole images are resized to `image_size`, whatever the
    fields before it say of crops and colours, and nothing is random).
    """
    size = tuple(data.image_size)
    transforms: list[Transform] = []
    if not data.get("augment", True):
        transforms.append(ResizeTo(size))
    else:
        crop = RandomCrop(size, data.max_share)
        if data.short_edges:
            resize = RandomShortEdge(tuple(data.short_edges), data.longest)
            transforms.append(ResizedCrop(resize, crop))
        else:
            transforms.append(crop)
        transforms.append(HorizontalFlip())
        if data.distort:
            transforms.append(PhotometricDistortion())
    mean = np.broadcast_to(np.asarray(data.mean) * 255, 3).round().astype(int)
    transforms.append(PadTo(size, tuple(mean.tolist())))
    return Feed(transforms, (*READS, "size"), READS)


def evaluation_feed(data: Any) -> Feed:
    """Images resized to fit (`data.test_longest`, `data.test_shortest`; 0: as they are).

    Labels keep their size.
    """
    transforms: list[Transform] = []
    if data.test_longest:
        transforms.append(ResizeToFit(data.test_longest, data.test_shortest, masks=False))
    return Feed(transforms, READS, by_size=True)


def classes_of(data: Any, source: Any) -> tuple[str, ...]:
    """Names of the classes; where nothing names them, numbers up to `num_classes`.

    Raises:
        ConfigError: nothing says how many there are, or there are more than 8 bits tell apart.
    """
    if source.classes:
        return tuple(source.classes)
    if not data.num_classes:
        raise ConfigError(
            f"nothing says which classes {data.path!r} has: name them in its dataset.yaml, or give "
            "--config.data.num_classes"
        )
    if not 0 < data.num_classes <= IGNORE:
        raise ConfigError(
            f"config.data.num_classes is {data.num_classes}; labels of 8 bits have from 1 to "
            f"{IGNORE} classes"
        )
    return tuple(str(number) for number in range(data.num_classes))


def number_unread(config: Any) -> int:
    """How many classes the training data have, as far as settings say it: for plans without data.

    That of `config.data.num_classes`, of the embedded scenes, or of the layouts that the sets name;
    150, ADE20K's, where only the data themselves would say.
    """
    sets: list[Any] = [*pipeline.data_sets(config, "train").values()] or [config.data]
    for data in sets:
        if data.num_classes:
            return data.num_classes
        if data.source == "scenes":
            return len(scenes.CLASSES)
        if data.layout in LAYOUTS and LAYOUTS[data.layout].classes:
            return len(LAYOUTS[data.layout].classes)
    return 150


def normalise(
    data: Any, images: UInt8[Array, "b h w c"], sizes: Int[Array, "b 2"] | None = None
) -> Float[Array, "b h w 3"]:
    """Images as the model sees them: less `data.mean`, over `data.std`, padding exactly zero.

    Args:
        sizes: (height, width) of the images without their padding.
    """
    pixels = inputs.normalise(images, data.mean, data.std)
    return pixels if sizes is None else inputs.blank_padding(pixels, sizes)
