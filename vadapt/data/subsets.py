"""Parts of a data set drawn by a seed, by what images are called and not by where they stand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def in_drawn_order(names: Iterable[str], seed: int) -> list[str]:
    """The names in an order that depends on the seed and on which names there are.

    >>> in_drawn_order(["a", "b", "c"], 0) == in_drawn_order(["c", "a", "b"], 0)
    True
    """
    return sorted(names, key=lambda name: (drawn_rank(name, seed), name))


def drawn_rank(name: str, seed: int) -> bytes:
    """A place in the drawn order that no other name has a say in."""
    return hashlib.sha256(f"{seed}\n{name}".encode()).digest()
