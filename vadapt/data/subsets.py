"""Parts of a data set: drawn by a seed, by what images are called; or half of the classes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from vadapt.data.identity import Identity, identify, identity_of
from vadapt.data.sources import Record, name_of
from vadapt.data.untrusted import first_of
from vadapt.errors import ConfigError, DataError, nearest

HALVES = ("first", "second")


class FewShot:
    """As many images of each class, drawn by a seed: class by class, in the order drawn.

    Which are drawn depends on the seed and on what the images of a class are called, see `key_of`:
    neither on their order, nor on the other classes. Fewer shots are the first of more.

    Args:
        source: of images with one label each; has `classes` and `targets`.
        shots: images of each class.

    Raises:
        ConfigError: no shots, or a source without such labels.
        DataError: a class has fewer images.
    """

    def __init__(self, source: Any, shots: int, seed: int = 0):
        if shots < 1:
            raise ConfigError(f"shots is {shots}; at least 1 image of each class is needed")
        targets = getattr(source, "targets", None)
        if targets is None or np.any((targets > 0).sum(1) != 1):
            raise ConfigError(
                f"config.data.shots={shots} needs one label an image, told of all at once "
                f"(`targets`), which {source!r} does not have: 0 takes all images"
            )
        self.source, self.shots, self.seed = source, shots, seed
        self.classes: tuple[str, ...] = source.classes
        self._check_enough((targets > 0).sum(0).tolist())
        self.places = _drawn(source, targets.argmax(1), shots, seed)
        self.targets = targets[self.places]

    def _check_enough(self, numbers: list[int]) -> None:
        """Raises DataError where a class has fewer images than are drawn."""
        short = [place for place, number in enumerate(numbers) if number < self.shots]
        if short:
            names = [self.classes[place] for place in short]
            others = f"; so have {first_of(names[1:])}" if names[1:] else ""
            raise DataError(
                f"config.data.shots={self.shots}, and class {names[0]!r} of {self.source!r} has "
                f"fewer images: {numbers[short[0]]}{others}. All classes have {min(numbers)}: take "
                "no more, or add images (of the embedded scenes: config.data.num_scenes)"
            )

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.places[index])]

    def __repr__(self) -> str:
        return f"FewShot({self.source!r}, {self.shots}, seed={self.seed})"

    def name(self, index: int) -> str:
        return name_of(self.source, int(self.places[index]))

    def identity(self) -> Identity:
        """That of the whole source, and which of it were drawn."""
        return identity_of(len(self), identify(self.source), self.places)


class ClassHalf:
    """The images of the first, or of the second, half of a data set's classes, and these alone.

    Retrieval of fine-grained classes is trained on the first and tested on the second, so that no
    class of a query was ever learned. Of an odd number the second half has one more.

    Args:
        source: of images with labels; has `classes` and `targets`.
        half: "first" or "second".

    Raises:
        ConfigError: another half, or a source without such labels, or of one class.
    """

    def __init__(self, source: Any, half: str):
        if half not in HALVES:
            raise ConfigError(f"config.data.class_half={half!r}; {nearest(half, HALVES)}")
        targets = getattr(source, "targets", None)
        if targets is None or targets.shape[1] < 2:
            raise ConfigError(
                f"config.data.class_half={half!r} needs labels of two classes at least, told of "
                f"all images at once (`targets`), which {source!r} does not have"
            )
        middle = targets.shape[1] // 2
        self.source, self.half = source, half
        self._columns = slice(0, middle) if half == "first" else slice(middle, None)
        self.classes: tuple[str, ...] = tuple(source.classes)[self._columns]
        self.places = np.flatnonzero((targets[:, self._columns] > 0).any(axis=1))
        self.targets = targets[self.places][:, self._columns]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Record:
        record = self.source[int(self.places[index])]
        cut = {name: record[name][self._columns] for name in ("labels", "areas") if name in record}
        return {**record, **cut}

    def __repr__(self) -> str:
        return f"ClassHalf({self.source!r}, {self.half!r})"

    def name(self, index: int) -> str:
        return name_of(self.source, int(self.places[index]))

    def key(self, index: int) -> str:
        return key_of(self.source, int(self.places[index]))

    def identity(self) -> Identity:
        """That of the whole source, and which half it is."""
        return identity_of(len(self), identify(self.source), self.half)


def key_of(source: Any, index: int) -> str:
    """What draws an element: `source.key(index)`, else its name in messages."""
    key = getattr(source, "key", None)
    return name_of(source, index) if key is None else key(index)


def in_drawn_order(names: Iterable[str], seed: int) -> list[str]:
    """The names in an order that depends on the seed and on which names there are.

    >>> in_drawn_order(["a", "b", "c"], 0) == in_drawn_order(["c", "a", "b"], 0)
    True
    """
    return sorted(names, key=lambda name: (_rank(name, seed), name))


def _rank(name: str, seed: int) -> bytes:
    """A place in the drawn order that no other name has a say in."""
    return hashlib.sha256(f"{seed}\n{name}".encode("utf-8", "surrogateescape")).digest()


def _drawn(
    source: Any, classes: Integer[np.ndarray, " n"], shots: int, seed: int
) -> Int[np.ndarray, " m"]:
    """The elements drawn of each class, by number."""
    places: list[int] = []
    for number in range(len(source.classes)):
        members = np.flatnonzero(classes == number).tolist()
        ranks = {place: _rank(key_of(source, place), seed) for place in members}
        places += sorted(members, key=lambda place, ranks=ranks: (ranks[place], place))[:shots]
    return np.array(places, np.int64)
