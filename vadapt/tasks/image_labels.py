"""Images with labels: what `config.data` and `config.test` of a recognition task name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vadapt.data.augment import ColourJitter, CropMix, RandomErasing
from vadapt.data.auto_augment import RandAugment, TrivialAugment
from vadapt.data.multilabel import (
    ClassFolders,
    LabelledImages,
    SceneLabels,
    SceneObjects,
    TfdsLabels,
)
from vadapt.data.repeated import Repeated, balanced_counts
from vadapt.data.scenes import SceneOptions
from vadapt.data.sources import Guarded
from vadapt.data.stream import Stream, batches, make_stream
from vadapt.data.transforms import (
    HorizontalFlip,
    RandomResizedCrop,
    Resize,
    ResizeCenterCrop,
    Transform,
)
from vadapt.errors import ConfigError, nearest
from vadapt.options import accepted
from vadapt.registry import Registry

# config.data.source -> a function of `config.data` to images with labels.
SOURCES = Registry(
    "config.data.source",
    {
        name: f"vadapt.tasks.image_labels:{name}_source"
        for name in ("scenes", "scene_objects", "labels", "folders", "tfds")
    },
)
EMBEDDED = ("scenes", "scene_objects")
AUGMENTS = ("none", "crop", "crop_mix", "rand_augment")


def make_source(data: Any, classes: Sequence[str] = ()) -> Any:
    """The images and labels that `config.data` names.

    Fields: `source` (a name in `SOURCES`, or the place of a function of `config.data` to a source),
    and those that the source reads.

    Args:
        classes: that it must have, in this order; by default its own.

    Raises:
        ConfigError: an unknown source, one without a path, or one with other classes.
    """
    make = SOURCES[data.source]
    takes_classes = "classes" in accepted(make)
    source = make(data, classes=classes) if takes_classes else make(data)
    if classes and tuple(source.classes) != tuple(classes):
        raise ConfigError(
            f"{source!r} has other classes ({len(source.classes)}) than what is trained on "
            f"({len(classes)}), or in another order"
        )
    return source


def scenes_source(data: Any, make: Any = SceneLabels) -> Any:
    """The embedded street scenes, with the classes that they show.

    Reads `num_scenes`, `view`, `domain`, `image_size` and `scene_seed`.
    """
    height, width = data.image_size
    options = SceneOptions(height=height, width=width, domain=data.domain)
    return make(data.num_scenes, view=data.view, seed=data.scene_seed, options=options)


def scene_objects_source(data: Any) -> Any:
    """Single objects of the embedded scenes, each with one label. Reads what `scenes` does."""
    return scenes_source(data, SceneObjects)


def labels_source(data: Any) -> Any:
    """Images, and files that say their labels. Reads `path`, `split` and `layout`."""
    _check_path(data)
    return LabelledImages(data.path, data.split, layout=data.layout)


def folders_source(data: Any, classes: Sequence[str] = ()) -> Any:
    """Images in folders, one per class. Reads `path` and `split`."""
    _check_path(data)
    return ClassFolders(data.path, data.split, classes=classes)


def tfds_source(data: Any) -> Any:
    """A data set of TFDS. Reads `tfds_name`, `split` and `path` (where TFDS keeps its data)."""
    return TfdsLabels(data.tfds_name, data.split, data_dir=data.path or None)


def _check_path(data: Any) -> None:
    if not data.path:
        raise ConfigError(f"config.data.source is {data.source!r}: give --config.data.path=ROOT")


def augmentation(data: Any) -> list[Transform]:
    """The transforms of training images, by the name in `config.data.augment`.

    "crop_mix" is GKGNet's (mixed crops, flip, erasing, colours, TrivialAugment); "rand_augment"
    ViG's (random crop, flip, RandAugment, erasing); "crop" random crops and flips; "none" resizes.
    Fields: `image_size`, `crop_area` (of random crops).
    """
    if data.augment not in AUGMENTS:
        raise ConfigError(
            f"unknown config.data.augment {data.augment!r}; {nearest(data.augment, AUGMENTS)}"
        )
    size, area = tuple(data.image_size), tuple(data.crop_area)
    chains: dict[str, list[Transform]] = {
        "none": [Resize(size)],
        "crop": [RandomResizedCrop(size, area=area), HorizontalFlip()],
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


def training_stream(config: Any, source: Any) -> Stream:
    """Batches of this process: {"image": uint8 [b, h, w, c], "labels": int8 [b, l]}.

    Fields of `config.data`: those of `augmentation`, `balance` (images of labels that fewer than
    this share of the images have come more often; 0: all once), `views` (of an image in
    succession), `max_corrupt`.
    """
    data = config.data
    if data.balance:
        source = Repeated(source, balanced_counts(source.targets, data.balance))
    return make_stream(
        source,
        augmentation(data),
        batch_size=config.batch_size,
        seed=config.seed,
        views=data.views,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        max_corrupt=data.max_corrupt,
        fields=("image", "labels"),
    )


def batch_shapes(config: Any, num_labels: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a whole batch of `training_stream`."""
    data, number = config.data, config.batch_size
    channels = 1 if data.source in EMBEDDED and data.view == "thermal" else 3
    return {
        "image": jax.ShapeDtypeStruct((number, *data.image_size, channels), jnp.uint8),
        "labels": jax.ShapeDtypeStruct((number, num_labels), jnp.int8),
    }


def test_batches(data: Any, source: Any, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """All elements once, this process's share: see `vadapt.data.stream.batches`.

    Images are resized whole to `data.image_size`, or with `data.test_crop` above 0 so that this
    share of their shorter side is kept about the centre.
    """
    size = tuple(data.image_size)
    fit = ResizeCenterCrop(size, data.test_crop) if data.test_crop else Resize(size)
    first = Guarded(source, data.max_corrupt, evaluating=True)[0]
    known = [name for name in ("image", "labels", "areas") if name in first]
    return batches(
        source,
        [fit],
        batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        max_corrupt=data.max_corrupt,
        fields=known,
    )
