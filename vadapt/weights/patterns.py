"""Patterns that files of unknown origin bring along: only those are matched that end soon."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_LONGEST, _REPEATS, _CHOICES = 1000, 3, 10
_TOKEN = re.compile(
    r"\\."  # an escape
    r"|\[\^?\]?(?:\\.|[^\]\\])*\]"  # a class
    r"|\{\d*,?\d*\}"
    r"|\(\?:|.",
    re.DOTALL,
)


def ends_soon(pattern: str) -> bool:
    """Whether matching a regular expression takes a bounded time on any path.

    Backtracking is exponential where something repeated holds what may match in several ways, and
    a polynomial of the number of repetitions. So few of them are let pass, and none in another.
    """
    if len(pattern) > _LONGEST:
        return False
    repeats = choices = 0
    varied = [False]  # of the open groups, whether they match in several ways
    last = False  # the same of what came last
    for token in _TOKEN.findall(pattern):
        if token in ("(", "(?:"):
            varied.append(False)
            choices += 1
            last = False
        elif token == ")" and len(varied) > 1:
            last = varied.pop()
            varied[-1] |= last
        elif token in ("*", "+") or (token[0] == "{" and len(token) > 1):
            if last:
                return False
            repeats += 1
            varied[-1] = last = True
        elif token in ("|", "?"):
            choices += 1
            varied[-1] = last = True
        else:
            last = False
    return repeats <= _REPEATS and choices <= _CHOICES


def texts(value: Any) -> list[str]:
    """All texts in a header's field."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value
    return [text for part in parts for text in texts(part)] if _holds(value) else []


def _holds(value: Any) -> bool:
    return isinstance(value, Mapping | list | tuple)
