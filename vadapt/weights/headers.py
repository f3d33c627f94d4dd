"""Headers of adapter files, which anyone may have written: every field is checked here, and once.

A header may name what to build. It is refused where a number in it is of no model that the file
could be of, before anything is built; what passes is built of shapes alone, and compared with the
file's arrays (`adapter_file.check_shapes`), before any memory is taken.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vadapt.backbones.named import Statistics
from vadapt.errors import WeightsError
from vadapt.quantization import DTYPES
from vadapt.weights.patterns import ends_soon, texts

# Of files with some of a backbone's blocks: the numbers that these had in it, and which of those in
# the file see the whole map, where others see windows.
BLOCKS, GLOBAL = "blocks", "global_blocks"
_LARGEST = 2**20  # of the whole numbers that say how to build a model
_MOST_PARTS = 2**10  # of those that say how many modules it has, which are built one by one
_PARTS = re.compile(r"depths?|.*_depth|num_(layers|stages|blocks)|(.*_)?layers")
_DEEPEST = 32  # levels of a field
_LONGEST = 200  # characters of what is named in messages
# Fields of `config` that are matched against names of weights.
_PATTERNS = ("allow_missing", "allow_unexpected")


def parse(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """The fields of an adapter file's header, as `adapter_file.AdapterInfo` has them.

    Fields that are not known here are kept as they are, within bounds.

    Raises:
        WeightsError: a field is not what it should be; names the file, the field and what came.
    """
    fields = {name: _parsed(path, name, text) for name, text in header.items()}
    fields = {name: fields[name] for name in fields if fields[name] is not None}
    fields |= {name: header[name] for name in _PLAIN}
    for name, value in fields.items():
        check, expected = _CHECKS.get(name, (_is_anything, ""))
        if not check(value):
            raise _refused(path, name, value, expected)
    return {name: _MADE[name](value) if name in _MADE else value for name, value in fields.items()}


def made_by(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """Options of the backbone that a file of `dropped.save_dropped` holds; none of another file.

    Raises:
        WeightsError: the header says what cannot be.
    """
    if BLOCKS not in header or "vadapt" not in header:
        return {}
    said = {name: header[name] for name in ("vadapt", BLOCKS, GLOBAL) if name in header}
    fields = parse(path, {"base": "", **said})
    options = {"depth": len(fields[BLOCKS])}
    return {**options, GLOBAL: tuple(fields[GLOBAL])} if GLOBAL in fields else options


def _parsed(path: Path, name: str, text: str) -> Any:
    """JSON, or the text itself where another program wrote it."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    except RecursionError:
        value = math.nan
    if not _is_bounded(value):
        raise _refused(path, name, text, f"finite numbers, not nested deeper than {_DEEPEST}")
    return value


def _refused(path: Path, name: str, value: Any, expected: str) -> WeightsError:
    shown = value if isinstance(value, str) else repr(value)
    shown = f"{shown[:_LONGEST]!r}" + ("..." if len(shown) > _LONGEST else "")
    return WeightsError(
        f"{str(path)!r} has a header whose {name!r} is {shown}; expected {expected}. If it was not "
        "changed on purpose, fetch the file again"
    )


def _is_bounded(value: Any) -> bool:
    """Return whether it is not too deep, and its numbers are finite; it goes level by level."""
    level = [value]
    for _ in range(_DEEPEST):
        if any(isinstance(one, float) and not math.isfinite(one) for one in level):
            return False
        holders = (one for one in level if isinstance(one, dict | list))
        level = [x for one in holders for x in (one.values() if isinstance(one, dict) else one)]
    return not level


def _is_anything(_: Any) -> bool:
    return True


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST and value.isprintable()


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_name, value))


def _are_patterns(value: Any) -> bool:
    """Text, or a list of such."""
    return isinstance(value, str) or (isinstance(value, list) and all(map(_are_patterns, value)))


def _are_statistics(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    mean, std = value
    rows = all(isinstance(row, list) and len(row) == 3 for row in value)
    return rows and all(map(_is_number, mean + std)) and all(x > 0 for x in std)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _is_palette(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, list)
        and len(row) == 3
        and all(type(one) is int and 0 <= one <= 255 for one in row)
        for row in value
    )


def _is_plan(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w,:()*.+-]{0,4096}", value) is not None


def _are_blocks(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(type(number) is int and 0 <= number < _MOST_PARTS for number in value)
        and len({*value}) == len(value)
    )


def _are_methods(value: Any) -> bool:
    methods = value if isinstance(value, list) else [value]
    return all(_is_method(method) for method in methods)


def _is_method(value: Any) -> bool:
    named = isinstance(value, dict) and _is_name(value.get("name"))
    return named and _are_sizes(value) and all(map(ends_soon, texts(value)))


def _is_built(value: Any) -> bool:
    """Return whether these are options that say how to build something."""
    return isinstance(value, dict) and _are_sizes(value)


def _is_config(value: Any) -> bool:
    """Settings of a run: sections by name, of which all numbers say how to build or to see."""
    if not isinstance(value, dict) or not _are_sizes(value):
        return False
    method, model = value.get("method", {"name": "none"}), value.get("model", {})
    sections = all(isinstance(value.get(name, {}), dict) for name in _SECTIONS)
    if not sections or not _are_methods(method):
        return False
    patterns = [model.get(name, ()) for name in _PATTERNS]
    return all(map(ends_soon, texts(patterns)))


def _are_sizes(value: Any) -> bool:
    """Return whether all whole numbers in it may be those of a model."""
    return all(
        abs(number) <= (_MOST_PARTS if name and _PARTS.fullmatch(name) else _LARGEST)
        for name, number in _numbers(value, "")
    )


def _numbers(value: Any, name: str) -> Iterator[tuple[str, int]]:
    """The whole numbers in a value of few levels, and the names under which they stand."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _numbers(part, key)
    elif isinstance(value, list):
        for part in value:
            yield from _numbers(part, name)
    elif isinstance(value, int) and name != "seed":
        yield name, value


def _methods(value: Any) -> tuple[Mapping[str, Any], ...]:
    return tuple(value) if isinstance(value, list) else (value,)


_PLAIN = ("vadapt", "base")
_SECTIONS = ("model", "method", "data", "task", "eval")
_SIZES = f"whole numbers up to {_LARGEST:,}, of modules up to {_MOST_PARTS:,}"
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(_PLAIN, (_is_name, "a short text")),
    "base_kind": (_is_name, "a short text"),
    "backbone": (_is_name, "a short text"),
    "method": (
        _are_methods,
        f"a name and options, or a list of such; {_SIZES}; never a pattern that might never end",
    ),
    **dict.fromkeys((BLOCKS, GLOBAL), (_are_blocks, "different numbers of blocks")),
    "plan": (_is_plan, "numbers of blocks, as vadapt.nn.plans reads them"),
    "trainable": (_are_patterns, "patterns"),
    "classes": (_is_names, "a list of short texts"),
    "statistics": (_are_statistics, "two rows of three numbers, the second above 0"),
    "frozen_dtype": (lambda value: value in DTYPES, f"one of {', '.join(DTYPES)}"),
    "palette": (_is_palette, "a list of [red, green, blue], each from 0 to 255"),
    "options": (_is_built, f"options by name: {_SIZES}"),
    "config": (
        _is_config,
        f"sections by name; {_SIZES}; never a pattern that might never end",
    ),
}
_MADE: dict[str, Callable[[Any], Any]] = {
    "method": _methods,
    "classes": tuple,
    "statistics": lambda rows: Statistics(*map(tuple, rows)),
}
