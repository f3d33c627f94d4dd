"""Name tables: how a family's names and layouts map onto vadapt's paths, as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# Layout changes; they use array methods only, so NumPy arrays and JAX tracers both pass.
LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "same": lambda x: x,
    "linear": lambda x: x.T,  # (out, in) to (in, out)
    "conv": lambda x: x.transpose(2, 3, 1, 0),  # OIHW to HWIO
    "vector": lambda x: x.reshape(-1),  # (1, 1, d) to (d,)
    "table": lambda x: x.reshape(x.shape[-2:]),  # (1, n, d) to (n, d)
}

# The way back.
REVERSED: dict[str, Callable[[Any], Any]] = {
    "same": lambda x: x,
    "linear": lambda x: x.T,
    "conv": lambda x: x.transpose(3, 2, 0, 1),
    "vector": lambda x: x.reshape(1, 1, -1),
    "table": lambda x: x[None],
}


class Rule(NamedTuple):
    """One line of a name table; the first rule whose pattern matches a whole name wins."""

    pattern: str  # regular expression for the family's name
    path: str  # vadapt's path, with \\1 for groups
    layout: str = "same"  # key of LAYOUTS


class Table(NamedTuple):
    """A family's rules. Paths of `backbone` rules are relative to the backbone."""

    family: str
    backbone: tuple[Rule, ...]
    head: tuple[Rule, ...] = ()

    def knows(self, name: str) -> bool:
        """Whether any rule matches this name."""
        return any(re.fullmatch(rule.pattern, name) for rule in (*self.backbone, *self.head))


def convert(
    arrays: Mapping[str, Any], table: Table, *, backbone: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Arrays under vadapt's paths and layouts, and the names that no rule knows.

    Args:
        backbone: where the backbone sits in the model, such as "backbone/"; "" if it is the model.
    """
    rules = [(rule, backbone) for rule in table.backbone] + [(rule, "") for rule in table.head]
    converted: dict[str, Any] = {}
    unknown: list[str] = []
    for name, array in arrays.items():
        for rule, prefix in rules:
            match = re.fullmatch(rule.pattern, name)
            if match:
                converted[prefix + match.expand(rule.path)] = LAYOUTS[rule.layout](array)
                break
        else:
            unknown.append(name)
    return converted, unknown


def revert(
    values: Mapping[str, Any], table: Table, *, backbone: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """The inverse of `convert`: arrays under a family's names and layouts, and paths without one.

    Where a rule reads several spellings of a name, the first is written.
    """
    rules = [_reversed(rule, backbone) for rule in table.backbone]
    rules += [_reversed(rule, "") for rule in table.head]
    reverted: dict[str, Any] = {}
    unknown: list[str] = []
    for path, array in values.items():
        for rule in rules:
            match = re.fullmatch(rule.pattern, path)
            if match:
                reverted[match.expand(rule.path)] = REVERSED[rule.layout](array)
                break
        else:
            unknown.append(path)
    return reverted, unknown


def _reversed(rule: Rule, prefix: str) -> Rule:
    """A rule from vadapt's path to the family's name; patterns hold plain groups only."""
    name = re.sub(r"\(\?:([^|)]*)[^)]*\)", r"\1", rule.pattern)  # the first spelling
    groups = re.findall(r"\([^)]*\)", name)
    path = re.escape(prefix) + rule.path
    for number, group in enumerate(groups, start=1):
        name = name.replace(group, f"\\{number}", 1)
        path = path.replace(f"\\{number}", group, 1)
    return Rule(path, name.replace(r"\.", "."), rule.layout)
