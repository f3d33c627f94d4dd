"""Images with labelled pixels: what `config.data` and `config.test` of a segmentation name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped, UInt8
from ml_collections import ConfigDict

from vadapt.data.fields import stack
from vadapt.data.kinds import Batch
from vadapt.data.photometric import PhotometricDistortion
from vadapt.data.segmentation_transforms import (
    PadTo,
    RandomCrop,
    RandomShortEdge,
    ResizeTo,
    ResizeToFit,
)
from vadapt.data.sources import Guarded, Joined, Source
from vadapt.data.stream import Stream, make_stream, readable, select_fields
from vadapt.data.transforms import HorizontalFlip, Transform, apply_all
from vadapt.errors import ConfigError
from vadapt.tasks import inputs

FIELDS = ("image", "mask", "size")  # of training batches


def make_source(data: Any) -> Source:
    """The images and labels that `config.data` names.

    Fields: see `inputs.make_source`.

    Raises:
        ConfigError: an unknown source, one without labels, or folders without a path.
    """
    source = inputs.make_source(data, labelled=True)
    if not hasattr(source, "classes"):
        raise ConfigError(
            f"config.data.source={data.source!r} has images without labels; 'segmentation' reads "
            "images and masks in folders, and a source of one's own has `classes` and `palette`"
        )
    return source


def training_source(config: Any) -> Source:
    """The training data: `config.data`, or the sets that `config.train` names, joined.

    Raises:
        ConfigError: see `make_source`; or the sets have other classes.
    """
    sources = {name: make_source(data) for name, data in data_sets(config, "train").items()}
    if not sources:
        return make_source(config.data)
    return Joined(sources) if len(sources) > 1 else next(iter(sources.values()))


def data_sets(config: Any, kind: str) -> dict[str, ConfigDict]:
    """The fields of `config.data` for each name in `config.train`, `config.validation` or
    `config.test` ("kind"), changed as it says."""
    return {
        name: ConfigDict({**config.data.to_dict(), **changes.to_dict()})
        for name, changes in config.get(kind, {}).items()
    }


def evaluation_sets(config: Any, on: str) -> dict[str, ConfigDict]:
    """The data sets to evaluate "test" or "validation" on; the former where there are no latter."""
    return data_sets(config, on) or data_sets(config, "test")


def classes_of(data: Any, source: Any) -> tuple[str, ...]:
    """Names of the classes; where nothing names them, numbers up to `num_classes`.

    Raises:
        ConfigError: nothing says how many there are.
    """
    if source.classes:
        return tuple(source.classes)
    if not data.num_classes:
        raise ConfigError(
            f"nothing says which classes {data.path!r} has: name them in its dataset.yaml, or give "
            "--config.data.num_classes"
        )
    return tuple(str(number) for number in range(data.num_classes))


def training_transforms(data: Any) -> list[Transform]:
    """The transforms of `training_stream`; with `augment` False nothing of them is random."""
    size = tuple(data.image_size)
    transforms: list[Transform] = []
    if not data.get("augment", True):
        transforms.append(ResizeTo(size))
    else:
        if data.short_edges:
            transforms.append(RandomShortEdge(tuple(data.short_edges), data.longest))
        transforms += [RandomCrop(size, data.max_share), HorizontalFlip()]
        if data.distort:
            transforms.append(PhotometricDistortion())
    mean = np.broadcast_to(np.asarray(data.mean) * 255, 3).round().astype(int)
    return [*transforms, PadTo(size, tuple(mean.tolist()))]


def training_stream(config: Any, source: Source) -> Stream:
    """Batches of this process: resized, cropped, flipped half of the time, colours distorted.

    Fields of `config.data`: `image_size` (of crops), `short_edges` (to one of which images are
    resized at random; none: as they are) and `longest`, `max_share` (of one class in a crop),
    `distort`, `mean`, `max_corrupt`; `augment` (False: whole images are resized to `image_size`,
    whatever the fields before it say of crops and colours).
    """
    data = config.data
    return make_stream(
        source,
        training_transforms(data),
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        max_corrupt=data.max_corrupt,
        fields=FIELDS,
    )


def read(
    data: Any, source: Source, indices: Int[np.ndarray, " n"]
) -> dict[str, Shaped[np.ndarray, "n *_"]]:
    """The elements of these numbers as `training_stream` gives them where nothing is random."""
    guarded, transforms = Guarded(source, data.max_corrupt), training_transforms(data)
    rng = np.random.default_rng(0)
    records = [apply_all(transforms, guarded[index], rng) for index in indices.tolist()]
    return stack([select_fields(record, FIELDS) for record in records])


def batch_shapes(config: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a whole batch of `training_stream`."""
    data, number = config.data, config.batch_size
    channels = 1 if data.source == "scenes" and data.view == "thermal" else 3
    return {
        "image": jax.ShapeDtypeStruct((number, *data.image_size, channels), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((number, *data.image_size), jnp.uint8),
        "size": jax.ShapeDtypeStruct((number, 2), jnp.int32),
    }


def normalise(
    data: Any, images: UInt8[Array, "b h w c"], sizes: Int[Array, "b 2"] | None = None
) -> Float[Array, "b h w 3"]:
    """Images as the model sees them: less `data.mean`, over `data.std`, padding exactly zero.

    Args:
        sizes: (height, width) of the images without their padding.
    """
    pixels = inputs.normalise(images, data.mean, data.std)
    return pixels if sizes is None else inputs.blank_padding(pixels, sizes)


def test_batches(data: Any, source: Source, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """All elements once, this process's share: batches of one size, the last one filled up.

    Images that cannot be read are left out, up to a share of `data.max_corrupt`. The others are
    resized to fit (`data.test_longest`, `data.test_shortest`; 0: as they are); labels
    keep their size. "valid" is False for rows that fill a batch up.
    """
    mine = range(jax.process_index(), len(source), jax.process_count())
    transforms: list[Transform] = []
    if data.test_longest:
        transforms.append(ResizeToFit(data.test_longest, data.test_shortest, masks=False))
    fields = ("image", "mask")
    waiting: dict[Any, list[Batch]] = {}
    for record in readable(source, transforms, mine, max_corrupt=data.max_corrupt, fields=fields):
        key = (record["image"].shape, record["mask"].shape)
        waiting.setdefault(key, []).append(record)
        if len(waiting[key]) == batch_size:
            yield _batch(waiting.pop(key), batch_size)
    for records in waiting.values():
        yield _batch(records, batch_size)


def _batch(records: list[Batch], size: int) -> dict[str, np.ndarray]:
    lacking = size - len(records)
    filled = records + [records[-1]] * lacking
    return {
        "image": np.stack([record["image"] for record in filled]),
        "mask": np.stack([record["mask"] for record in filled]),
        "valid": np.arange(size) < len(records),
    }


def with_progress(batches: Iterable[Any], title: str) -> Iterator[Any]:
    """The same, counted aloud by process 0 of a terminal."""
    from rich.console import Console
    from rich.progress import track

    quiet = jax.process_index() > 0 or not Console().is_terminal
    yield from track(batches, title, disable=quiet, transient=True)
