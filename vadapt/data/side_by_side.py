"""Several streams as one, for tasks that learn from more than one data set at a time."""

from __future__ import annotations

from collections.abc import Mapping

from vadapt.data.identity import Identity
from vadapt.data.kinds import Batch
from vadapt.data.stream import LONE, Stream
from vadapt.errors import ConfigError


class SideBySide(Stream):
    """Several streams as one: each batch holds one of each, all at the same position.

    Fields of the first stream have their names, those of the others the stream's name before them:
    "image" and "target/image". The position is one number, as of any stream.

    >>> import numpy as np
    >>> from vadapt.data.stream import make_stream
    >>> gray = [{"image": np.full((2, 2, 1), i, np.uint8)} for i in range(5)]
    >>> options = {"batch_size": 2, "seed": 0, "num_threads": 0}
    >>> both = SideBySide(
    ...     {"source": make_stream(gray, [], **options), "target": make_stream(gray, [], **options)}
    ... )
    >>> sorted(next(both)), both.position
    (['image', 'target/image'], 1)
    """

    def __init__(self, streams: Mapping[str, Stream]):
        if not streams:
            raise ConfigError("no stream to run beside another; give one or more by name")
        self._streams = dict(streams)
        self._first = next(iter(streams))
        self._position = 0
        self.seek(0)

    @property
    def position(self) -> int:
        return self._position

    @property
    def num_corrupt(self) -> int:
        return sum(stream.num_corrupt for stream in self._streams.values())

    def identity(self) -> dict[str, Identity]:
        return {
            name if inner == LONE else f"{name}/{inner}": identity
            for name, stream in self._streams.items()
            for inner, identity in stream.identity().items()
        }

    def seek(self, position: int) -> None:
        for stream in self._streams.values():
            stream.seek(position)
        self._position = position

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()

    def __next__(self) -> Batch:
        try:
            taken = {name: next(stream) for name, stream in self._streams.items()}
        except BaseException:
            # Those before the one that failed have gone on: back to where all were.
            self.seek(self._position)
            raise
        self._position += 1
        return {
            field if name == self._first else f"{name}/{field}": array
            for name, batch in taken.items()
            for field, array in batch.items()
        }
