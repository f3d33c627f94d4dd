"""Records to batches: an endless training stream that resumes to the bit, and one pass to evaluate.

The batch at position i is a function of (source, transforms, seed, i) alone: the order of an epoch
comes from the seed and the epoch's number, every random choice from the element's own place in the
endless order. So a position, one integer, is all that a checkpoint needs, and neither the number of
threads nor of processes changes what is drawn.
"""

from __future__ import annotations

import abc
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vadapt.data.fields import stack
from vadapt.data.identity import Identity, identify
from vadapt.data.kinds import Batch
from vadapt.data.sources import Guarded, Record, Source
from vadapt.data.transforms import Transform, apply_all
from vadapt.errors import ConfigError, DataError, nearest

LONE = "data"  # the name of the data set of a stream that has one alone


class Stream(abc.ABC):
    """An endless iterator of batches that knows its position; see `make_stream`, which makes one.

    Attributes:
        position: the number of global batches that were delivered: what a checkpoint stores.
        num_corrupt: distinct unreadable elements that this process met since it started.
    """

    position: int
    num_corrupt: int

    @abc.abstractmethod
    def seek(self, position: int) -> None:
        """Makes the next batch the one at `position`, without reading those before it."""

    def identity(self) -> dict[str, Identity]:
        """Identities of its data sets by name; empty where nothing tells them from others."""
        return {}

    @abc.abstractmethod
    def close(self) -> None:
        """Stops the reading threads; the next batch, if one is asked for, starts new ones."""

    def __iter__(self) -> Stream:
        return self

    @abc.abstractmethod
    def __next__(self) -> Batch: ...


class RecordStream(Stream):
    """Batches of the records of one source, transformed."""

    def __init__(
        self,
        elements: Any,
        guarded: Guarded,
        *,
        batch_size: int,
        process_index: int,
        process_count: int,
        num_threads: int,
        prefetch: int,
        max_boxes: int | None = None,
    ):
        self._elements = elements
        self._guarded = guarded
        self._batch_size = batch_size
        self._process_index = process_index
        self._process_count = process_count
        self._num_threads = num_threads
        self._prefetch = prefetch
        self._max_boxes = max_boxes
        self._position = 0
        self._iterator: Any = None

    @property
    def position(self) -> int:
        return self._position

    @property
    def num_corrupt(self) -> int:
        return self._guarded.num_corrupt

    def identity(self) -> dict[str, Identity]:
        return {LONE: identify(self._guarded.source)}

    def seek(self, position: int) -> None:
        if position < 0:
            raise ConfigError(f"position is {position}; it counts batches and starts at 0")
        self.close()
        self._position = position

    def close(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __next__(self) -> Batch:
        share = self._batch_size // self._process_count
        if self._iterator is None:
            rows = _rows(self._batch_size, self._process_index, self._process_count)
            self._iterator = _read_ahead(
                rows[self._position * share :].map(self._elements.__getitem__),
                share,
                self._num_threads,
                self._prefetch,
                self._max_boxes,
            )
        try:
            batch = next(self._iterator)
        except BaseException:
            # Some of this batch's elements are gone: start over at this position if asked again.
            self.close()
            raise
        self._position += 1
        return batch


def make_stream(
    source: Source,
    transforms: Sequence[Transform],
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    views: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
    prefetch: int = 2,
    max_corrupt: float | int = 0.01,
    fields: Sequence[str] | None = None,
    max_boxes: int | None = None,
) -> Stream:
    """An endless stream of batches for training, deterministic and resumable to the bit.

    Each epoch goes through all elements once, in an order of its own. Epochs follow one another
    without a gap: a batch may hold the end of one and the start of the next, and none is dropped.

    Args:
        batch_size: of the whole batch; each process reads its share, the rows after those of the
            processes before it, so that what is trained does not depend on their number.
        shuffle: without it every epoch has the source's order (random transforms still differ).
        views: how often an element comes in succession, transformed anew each time (repeated
            augmentation, arXiv:1902.05509); an epoch takes so many times the batches.
        num_threads: that read and transform; 0 reads in the caller's thread. By default two for
            each core, 16 at most. Threads, not processes: the work is done in Pillow and NumPy,
            which let other threads run.
        prefetch: how many batches to read ahead; 0 reads in the caller's thread.
        max_corrupt: see `vadapt.data.sources.Guarded`.
        fields: of the records to keep in batches; by default all numbers and numeric arrays (text
            and nested fields are left out).
        max_boxes: rows to which boxes are padded, see `vadapt.data.fields.stack`.

    Raises:
        ConfigError: the batch cannot be shared among the processes, or a number is out of range.
        DataError: the source is empty; on reading, images of a batch differ in size or too many
            are unreadable.

    >>> source = [{"image": np.full((2, 2, 1), i, np.uint8)} for i in range(5)]
    >>> stream = make_stream(source, [], batch_size=4, seed=0, num_threads=0)
    >>> first, second = next(stream), next(stream)
    >>> stream.seek(1)
    >>> bool((next(stream)["image"] == second["image"]).all()), stream.position
    (True, 2)
    """
    import grain  # 0.7 s to import

    _check_sharing(batch_size, process_index, process_count)
    if len(source) == 0:
        raise DataError("the source is empty: no record to train on")
    guarded = Guarded(source, max_corrupt)
    # Seeds of their own, given explicitly: grain's would change with the length of the pipeline.
    shuffle_seed, transform_seed = map(int, np.random.SeedSequence(seed).generate_state(2))

    def transform(record: Record, rng: np.random.Generator) -> Batch:
        return select_fields(apply_all(transforms, record, rng), fields)

    elements: Any = grain.MapDataset.source(guarded)
    if shuffle:
        elements = elements.shuffle(seed=shuffle_seed)
    # After repeat, and before the processes part: an element's generator is then that of its place
    # in the endless order, new in every epoch and the same for any number of processes.
    elements = elements.repeat()
    if views > 1:
        each = elements
        elements = grain.MapDataset.range(sys.maxsize).map(lambda place: each[place // views])
    elements = elements.random_map(transform, seed=transform_seed)
    return RecordStream(
        elements,
        guarded,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
        num_threads=_default_threads() if num_threads is None else num_threads,
        prefetch=prefetch,
        max_boxes=max_boxes,
    )


def batches(
    source: Source,
    transforms: Sequence[Transform],
    batch_size: int,
    *,
    seed: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int | None = None,
    prefetch: int = 2,
    max_corrupt: float | int = 0.01,
    fields: Sequence[str] | None = None,
    max_boxes: int | None = None,
    first: int = 0,
) -> Iterator[Batch]:
    """One pass over a source in its own order, for evaluation; the arguments are `make_stream`'s.

    All batches have the same size: the last is filled up with the last element. The field "valid"
    (bool, [b]) is False for what fills up and for what stands in for an unreadable element, so that
    metrics weighted by it are exact. Random transforms draw the same in every pass.

    Args:
        first: the batch to begin with; those before it are not read.
    """
    _check_sharing(batch_size, process_index, process_count)
    if len(source) == 0:
        raise DataError("the source is empty: no record to evaluate")
    guarded = Guarded(source, max_corrupt, evaluating=True)
    length, num_batches = len(source), -(-len(source) // batch_size)

    def read(place: int) -> Batch:
        index = min(place, length - 1)
        rng = np.random.default_rng((seed, index))
        record = select_fields(apply_all(transforms, guarded[index], rng), fields)
        return record | {"valid": np.asarray(place < length and not guarded.is_corrupt(index))}

    share = batch_size // process_count
    rows = _rows(batch_size, process_index, process_count)
    rows = rows[first * share : num_batches * share]
    threads = _default_threads() if num_threads is None else num_threads
    iterator = _read_ahead(rows.map(read), share, threads, prefetch, max_boxes)
    try:
        yield from iterator
    finally:
        iterator.close()


def readable(
    source: Source,
    transforms: Sequence[Transform],
    indices: Sequence[int],
    *,
    seed: int = 0,
    max_corrupt: float | int = 0.01,
    fields: Sequence[str] | None = None,
) -> Iterator[Batch]:
    """The elements of these numbers in their order, read ahead by threads, for evaluation.

    Unreadable ones are left out, and named in the log. Other arguments are `batches`'s.
    """
    import grain

    guarded = Guarded(source, max_corrupt, evaluating=True)

    def read(place: int) -> Batch | None:
        index = indices[place]
        record = guarded[index]
        if guarded.is_corrupt(index):
            return None  # which grain passes over
        rng = np.random.default_rng((seed, index))
        return select_fields(apply_all(transforms, record, rng), fields)

    threads = min(_default_threads(), max(len(indices), 1))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    found: Any = grain.MapDataset.range(len(indices)).map(read).to_iter_dataset(options)
    iterator = iter(found)
    try:
        yield from iterator
    finally:
        iterator.close()


def select_fields(record: Record, fields: Sequence[str] | None = None) -> Batch:
    """The named fields of a record as arrays; by default all that are numeric."""
    if fields is None:
        arrays = {
            name: np.asarray(value) for name, value in record.items() if not isinstance(value, dict)
        }
        return {name: array for name, array in arrays.items() if array.dtype.kind in "biufc"}
    for name in fields:
        if name not in record:
            raise DataError(f"records have no field {name!r}; {nearest(name, record)}")
    return {name: np.asarray(record[name]) for name in fields}


def _rows(batch_size: int, process_index: int, process_count: int) -> Any:
    """The places in the global order of one process's rows, batch after batch without an end."""
    import grain

    share = batch_size // process_count

    def place(row: int) -> int:
        return row // share * batch_size + process_index * share + row % share

    return grain.MapDataset.range(sys.maxsize).map(place)


def _read_ahead(
    elements: Any, share: int, num_threads: int, prefetch: int, max_boxes: int | None
) -> Any:
    """grain's iterator over batches: elements read in order by threads, stacked by one more."""
    import grain

    # No more threads than elements to read: grain warns of those that could never work.
    ahead = prefetch * share
    options = grain.ReadOptions(num_threads=min(num_threads, ahead), prefetch_buffer_size=ahead)
    batches = elements.to_iter_dataset(options).batch(
        share, batch_fn=functools.partial(stack, max_boxes=max_boxes)
    )
    if options.num_threads:  # so that a batch lies ready when it is asked for
        batches = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=1)
    return iter(batches)


def _default_threads() -> int:
    return min(16, 2 * (os.cpu_count() or 1))


def _check_sharing(batch_size: int, process_index: int, process_count: int) -> None:
    if batch_size < 1 or process_count < 1 or batch_size % process_count:
        raise ConfigError(
            f"batch_size {batch_size} cannot be shared by {process_count} processes; it must be a "
            f"multiple of {process_count}"
        )
    if not 0 <= process_index < process_count:
        raise ConfigError(f"process_index is {process_index}; it must be 0..{process_count - 1}")
