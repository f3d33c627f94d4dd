"""A source whose records know which of its elements they are."""

from __future__ import annotations

import numpy as np

from vadapt.data.sources import Record, Source, name_of

ELEMENT = "element"  # the field


class Numbered:
    """A source with the field "element" in every record: the number of the element.

    >>> Numbered([{"name": "a"}, {"name": "b"}])[1]["element"].item()
    1
    """

    def __init__(self, source: Source):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        return {**self.source[index], ELEMENT: np.asarray(index, np.int32)}

    def __repr__(self) -> str:
        return repr(self.source)

    def name(self, index: int) -> str:
        return name_of(self.source, index)
