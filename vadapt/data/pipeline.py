"""From `config.data` to batches, for every task: sources, training streams, test batches, shapes.

A task says what it wants of the data in a `Feed`; `config.data` says which data. Settings that are
read here: `SETTINGS`, and those of the source (`settings_of`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from vadapt import options
from vadapt.data import fields
from vadapt.data.kinds import Batch, Dimensions
from vadapt.data.named_sources import EMBEDDED
from vadapt.data.numbered import ELEMENT, Numbered
from vadapt.data.repeated import Repeated, balanced_counts
from vadapt.data.side_by_side import SideBySide
from vadapt.data.sources import Guarded, Joined, Source
from vadapt.data.stream import Stream, batches, make_stream, readable, select_fields
from vadapt.data.subsets import ClassHalf, FewShot
from vadapt.data.transforms import Transform, apply_all
from vadapt.errors import ConfigError, nearest
from vadapt.registry import Registry

if TYPE_CHECKING:
    import jax

# config.data.source -> a function to a source: of settings of `config.data` by name (or, as `data`,
# of all of it), of `fields` (those that the task reads), of `classes` (those that it must have).
SOURCES = Registry(
    "config.data.source",
    {
        name: f"vadapt.data.named_sources:{name}"
        for name in (
            "scenes", "scene_objects", "scene_boxes", "folder", "msip", "segmentation", "labels",
            "folders", "boxes", "tfds",
        )
    },
)  # fmt: skip
# Of `config.data`, besides those of the source and of the task's transforms.
SETTINGS = (
    "source",
    "image_size",
    "max_corrupt",
    "balance",
    "views",
    "max_boxes",
    "frames",
    "shots",
    "shots_seed",
    "class_half",
)
_GIVEN = ("data", "fields", "classes")
_LABELED = {"mask", "labels", "box_classes"}  # fields whose numbers are of the source's classes


@dataclasses.dataclass(frozen=True)
class Feed:
    """What a task wants of its data.

    Attributes:
        transforms: from records to what is stacked.
        fields: of batches.
        reads: fields of the source's records; by default those of batches.
        optional: fields of test batches that only some sources have.
        by_size: test images keep their sizes, and come in batches of one size each.
    """

    transforms: Sequence[Transform]
    fields: tuple[str, ...] = ("image",)
    reads: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    by_size: bool = False


MakeFeed = Callable[[Any], Feed]  # of `config.data`


def make_source(
    data: Any, reads: Sequence[str] = ("image",), *, classes: Sequence[str] = ()
) -> Any:
    """The source that `config.data` names, with the fields that a task reads.

    Args:
        data: `source` (a name in `SOURCES`, or the place of a function, as in
            "my_package.data:drone"), and the settings that the source takes; `class_half` leaves
            one half of its classes, see `ClassHalf`.
        classes: that it must have, in this order; by default its own.

    Raises:
        ConfigError: an unknown source; one that lacks a setting, a field or labels, or has other
            classes.
    """
    make = SOURCES[data.source]
    half = data.get("class_half", "")
    wanted = () if half else tuple(classes)  # of which a whole source would have more
    given = {"data": data, "fields": tuple(reads), "classes": wanted}
    known = options.accepted(make)
    settings = {name: data[name] for name in known if name not in _GIVEN and name in data}
    options.check("data", data.source, make, settings, given=_GIVEN)
    source = make(**settings, **{name: value for name, value in given.items() if name in known})
    if {*reads} & _LABELED and not hasattr(source, "classes"):
        raise ConfigError(
            f"config.data.source={data.source!r} has images without labels; a source of one's own "
            "has `classes`, and for labels of pixels `palette`"
        )
    if half:
        source = ClassHalf(source, half)
    if classes and tuple(source.classes) != tuple(classes):
        raise ConfigError(
            f"{source!r} has other classes ({len(source.classes)}) than what is trained on "
            f"({len(classes)}), or in another order"
        )
    return source


def settings_of(name: str) -> tuple[str, ...] | None:
    """The settings of `config.data` that a source reads; None if it takes all of `data`."""
    known = options.accepted(SOURCES[name])
    return None if "data" in known else tuple(key for key in known if key not in _GIVEN)


def known_settings(name: str) -> tuple[str, ...] | None:
    """The settings that this module and sources read; None if this source takes all of `data`.

    Those of all sources of the package count: a recipe lists what another one in its place reads.

    Args:
        name: of the source.
    """
    each = [settings_of(source) for source in (name, *SOURCES)]
    if each[0] is None:
        return None
    return (*SETTINGS, *(setting for found in each if found for setting in found))


def data_sets(config: Any, kind: str) -> dict[str, ConfigDict]:
    """Data sets by name: `config.data`, changed as each set in `config.<kind>` says.

    Args:
        kind: "train", "validation", "test" or "streams".
    """
    return {
        name: ConfigDict({**config.data.to_dict(), **changes.to_dict()})
        for name, changes in config.get(kind, {}).items()
    }


def evaluation_sets(config: Any, on: str) -> dict[str, ConfigDict]:
    """The data sets to evaluate "test" or "validation" on; the former where there are no latter."""
    return data_sets(config, on) or data_sets(config, "test")


def training_source(config: Any, reads: Sequence[str] = ("image",)) -> Any:
    """The training data: `config.data`, or the sets that `config.train` names, joined.

    With `shots` in a set's data that many images of each class are drawn by `shots_seed`.

    Raises:
        ConfigError: see `make_source` and `FewShot`; or the sets have other classes.
        DataError: a class has fewer images than `shots`.
    """
    sets = data_sets(config, "train")
    sources = {name: _to_learn_from(data, reads) for name, data in sets.items()}
    if not sources:
        return _to_learn_from(config.data, reads)
    return Joined(sources) if len(sources) > 1 else next(iter(sources.values()))


def _to_learn_from(data: Any, reads: Sequence[str]) -> Any:
    """One set of training data."""
    source, shots = make_source(data, reads), data.get("shots", 0)
    return FewShot(source, shots, data.get("shots_seed", 0)) if shots else source


def training_stream(
    config: Any, feed: Feed, source: Source | None = None, **changes: Any
) -> Stream:
    """Endless batches of this process; see `vadapt.data.stream.make_stream`.

    Of `config.data` it reads `max_corrupt`, `balance` (images of labels that fewer than this share
    of the images have come more often; 0: all once), `views` (of an image in succession) and
    `max_boxes` (rows of boxes in a batch; 0: as many as each image has, if all have as many).

    Args:
        source: by default that of `training_source`.
        changes: of the arguments of `make_stream`.
    """
    elements = training_source(config, feed.reads or feed.fields) if source is None else source
    changes = {"seed": config.seed, **changes}
    return _stream(config.data, feed, elements, batch_size=config.batch_size, **changes)


def training_streams(config: Any, feeds: Mapping[str, MakeFeed]) -> Stream:
    """Streams of several data sets side by side, as one; see `vadapt.data.side_by_side`.

    The sets are those of `config.streams`, by name, each of which differs from `config.data` in the
    fields that it gives; the first, if it is not there, is what `training_source` gives. All have
    batches of `config.batch_size`. The first is drawn as if it were alone, each of the others by a
    seed of its own, made of its name.

    Args:
        feeds: what the task wants of each, in order, as a function of its data; fields of the first
            keep their names, those of the others are as "target/image".

    Raises:
        ConfigError: a set is missing, or nobody asks for it.
    """
    streams = {}
    for name, data in _streamed(config, feeds).items():
        feed = feeds[name](data)
        reads = feed.reads or feed.fields
        if name in config.get("streams", {}):
            elements = _to_learn_from(data, reads)
        else:
            elements = training_source(config, reads)
        seed = _seed(config.seed, name) if streams else config.seed
        streams[name] = _stream(data, feed, elements, batch_size=config.batch_size, seed=seed)
    return SideBySide(streams)


def _seed(seed: int, name: str) -> int:
    # Equal sets in equal order would pair each image with itself.
    return int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1)[0])


def _streamed(config: Any, feeds: Mapping[str, MakeFeed]) -> dict[str, Any]:
    """The data of every stream that a task asks for, in its order."""
    sets = data_sets(config, "streams")
    first, *others = feeds
    lacking = [name for name in others if name not in sets]
    if lacking:
        raise ConfigError(
            f"the task trains on {' and '.join(map(repr, feeds))}, and config.streams has no "
            f"{lacking[0]!r}: a section with the settings in which its data differ from config.data"
        )
    for name in sets:
        if name not in feeds:
            raise ConfigError(f"no task reads config.streams.{name}; {nearest(name, feeds)}")
    return {first: sets.get(first, config.data), **{name: sets[name] for name in others}}


def _stream(data: Any, feed: Feed, elements: Any, **changes: Any) -> Stream:
    if data.get("balance", 0):
        elements = Repeated(elements, balanced_counts(_targets(data, elements), data.balance))
    settings: dict[str, Any] = {
        "views": data.get("views", 1),
        "max_corrupt": data.max_corrupt,
        "fields": feed.fields,
        "max_boxes": data.get("max_boxes", 0) or None,
        **_process(),
    }
    return make_stream(elements, feed.transforms, **{**settings, **changes})


def batch_shapes(
    config: Any, names: Sequence[str] = ("image",), num_labels: int = 0
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a whole batch of `training_stream` with these fields, without reading data."""
    import jax

    dimensions = _dimensions(config.data, num_labels)
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)
        for name, (shape, dtype) in fields.shapes(names, dimensions).items()
    }


def streams_shapes(
    config: Any, feeds: Mapping[str, MakeFeed], num_labels: int = 0
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a whole batch of `training_streams`, without reading data."""
    shapes = {}
    for number, (name, data) in enumerate(_streamed(config, feeds).items()):
        own = ConfigDict({"data": data, "batch_size": config.batch_size})
        for field, shape in batch_shapes(own, feeds[name](data).fields, num_labels).items():
            shapes[f"{name}/{field}" if number else field] = shape
    return shapes


def evaluation_batches(
    data: Any,
    feed: Feed,
    source: Source,
    batch_size: int,
    only: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """All elements once, this process's share, read ahead; "valid" is False for what fills up.

    Elements that cannot be read count for nothing and are named in the log, up to a share of
    `data.max_corrupt`. With `feed.by_size` they are grouped by the sizes of their pixels, and the
    field "element" has their numbers.

    Args:
        only: with `feed.by_size`, the numbers of the elements to read instead of this process's.

    Raises:
        ConfigError: a batch of no image.
    """
    if batch_size < 1:
        raise ConfigError(
            f"config.eval.batch is {batch_size}; at least 1 image is scored at a time"
        )
    process = _process()
    if feed.by_size:
        mine = range(process["process_index"], len(source), process["process_count"])
        records = readable(
            Numbered(source),
            feed.transforms,
            mine if only is None else only,
            max_corrupt=data.max_corrupt,
            fields=(*feed.fields, ELEMENT),
        )
        yield from _grouped(records, batch_size, data.get("max_boxes", 0) or None)
        return
    first = Guarded(source, data.max_corrupt, evaluating=True)[0] if feed.optional else {}
    yield from batches(
        source,
        feed.transforms,
        batch_size,
        max_corrupt=data.max_corrupt,
        fields=(*feed.fields, *(name for name in feed.optional if name in first)),
        max_boxes=data.get("max_boxes", 0) or None,
        **process,
    )


def read(data: Any, feed: Feed, source: Source, indices: Int[np.ndarray, " n"]) -> Batch:
    """The elements of these numbers as one batch, where none of the transforms is random."""
    guarded = Guarded(source, data.max_corrupt)
    rng = np.random.default_rng(0)
    records = [apply_all(feed.transforms, guarded[index], rng) for index in indices.tolist()]
    chosen = [select_fields(record, feed.fields) for record in records]
    return fields.stack(chosen, data.get("max_boxes", 0) or None)


def _grouped(records: Iterator[Batch], batch_size: int, max_boxes: int | None) -> Iterator[Batch]:
    """Batches of records of one size; those that never filled come last."""
    waiting: dict[Any, list[Batch]] = {}
    for record in records:
        key = tuple(
            array.shape for name, array in record.items() if fields.kind_of(name).size(array)
        )
        waiting.setdefault(key, []).append(record)
        if len(waiting[key]) == batch_size:
            yield _filled(waiting.pop(key), batch_size, max_boxes)
    for records_left in waiting.values():
        yield _filled(records_left, batch_size, max_boxes)


def _filled(records: list[Batch], size: int, max_boxes: int | None) -> Batch:
    repeated = records + [records[-1]] * (size - len(records))
    return fields.stack(repeated, max_boxes) | {"valid": np.arange(size) < len(records)}


def _targets(data: Any, source: Any) -> np.ndarray:
    if not hasattr(source, "targets"):
        raise ConfigError(
            f"config.data.balance={data.balance}: {source!r} does not tell all labels at once "
            "(`targets`); give --config.data.balance=0"
        )
    return source.targets


def _dimensions(data: Any, num_labels: int) -> Dimensions:
    gray = data.source in EMBEDDED and data.view == "thermal"  # all other images are in color
    return Dimensions(
        tuple(data.image_size),
        1 if gray else 3,
        num_labels,
        data.get("max_boxes", 0),
        data.get("frames", 2),
    )


def _process() -> Mapping[str, int]:
    import jax  # which reading threads have no need of

    return {"process_index": jax.process_index(), "process_count": jax.process_count()}
