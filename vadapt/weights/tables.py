"""Name tables: how a family's names and layouts map onto vadapt's paths, as data."""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vadapt.errors import WeightsError
from vadapt.weights.files import lazily

# Layout changes; they use array methods only, so NumPy arrays and JAX tracers both pass.
LAYOUTS: dict[str, Callable[[Any], Any]] = {
    "same": lambda x: x,
    "linear": lambda x: x.T,  # (out, in) to (in, out)
    "conv": lambda x: x.transpose(2, 3, 1, 0),  # OIHW to HWIO
    "pointwise": lambda x: x.reshape(x.shape[:2]).T,  # (out, in, 1, 1) to (in, out)
    "vector": lambda x: x.reshape(-1),  # (1, 1, d) to (d,)
    "table": lambda x: x.reshape(x.shape[-2:]),  # (1, n, d) to (n, d)
    "grid": lambda x: x.reshape(-1, x.shape[-1]),  # (1, g, g, d) to (g * g, d)
    "places": lambda x: x.reshape(x.shape[-3], -1).T,  # (1, d, g, g) to (g * g, d)
    # (d, d / p, 1, 1) to (p, d / p, d / p): a square grouped 1x1 convolution of p groups
    "parts": lambda x: x.reshape(-1, x.shape[1], x.shape[1]).transpose(0, 2, 1),
    # (g * g, h), of which the first g rows are ever read, to (g, h)
    "line": lambda x: x[: _square(len(x))[0]],
    "levels": lambda x: x.reshape(x.shape[:2]),  # (l, h, 1, 1, 1) to (l, h)
}

# The way back.
REVERSED: dict[str, Callable[[Any], Any]] = {
    "same": lambda x: x,
    "linear": lambda x: x.T,
    "conv": lambda x: x.transpose(3, 2, 0, 1),
    "pointwise": lambda x: x.T[..., None, None],
    "vector": lambda x: x.reshape(1, 1, -1),
    "table": lambda x: x[None],
    "grid": lambda x: x.reshape(1, *_square(len(x)), x.shape[-1]),
    "places": lambda x: x.T.reshape(1, -1, *_square(len(x))),
    "parts": lambda x: x.transpose(0, 2, 1).reshape(-1, x.shape[1], 1, 1),
    "line": lambda x: _numpy_of(x).pad(x, ((0, len(x) * (len(x) - 1)), (0, 0))),
    "levels": lambda x: x[..., None, None, None],
}


def _numpy_of(array: Any) -> Any:
    """The module whose functions give an array of this kind."""
    return np if isinstance(array, np.ndarray) else jnp


def _square(places: int) -> tuple[int, int]:
    side = math.isqrt(places)
    if side * side != places:
        raise WeightsError(f"the family's tables are of square grids, not of {places} places")
    return side, side


class Rule(NamedTuple):
    """One line of a name table; the first rule whose pattern matches a whole name wins."""

    pattern: str  # regular expression for the family's name
    path: str  # vadapt's path, with \\1 for groups
    layout: str = "same"  # key of LAYOUTS
    # Which part, of how many, of the outputs of a projection that vadapt has in one piece.
    part: tuple[int, int] | None = None


def linear(source: str, target: str, part: tuple[int, int] | None = None) -> tuple[Rule, Rule]:
    """Weight and bias of a linear layer; the names without `weight` and `kernel`."""
    return (
        Rule(source + r"\.weight", target + "/kernel", "linear", part),
        Rule(source + r"\.bias", target + "/bias", part=part),
    )


def joined(sources: Sequence[str], target: str) -> tuple[Rule, ...]:
    """Linear layers that a family keeps apart and vadapt has in one, such as queries to values."""
    parts = [(i, len(sources)) for i in range(len(sources))]
    return tuple(
        rule
        for source, part in zip(sources, parts, strict=True)
        for rule in linear(source, target, part)
    )


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """Scale and bias of a norm; the names without `weight` and `scale`."""
    return Rule(source + r"\.weight", target + "/scale"), Rule(source + r"\.bias", target + "/bias")


def batch_norm(source: str, target: str) -> tuple[Rule, ...]:
    """Scale, bias and running statistics of a batch norm."""
    return (
        *norm(source, target),
        Rule(source + r"\.running_mean", target + "/mean"),
        Rule(source + r"\.running_var", target + "/var"),
    )


def conv(source: str, target: str) -> tuple[Rule, Rule]:
    """Weight and bias of a convolution; the names without `weight` and `kernel`."""
    return (
        Rule(source + r"\.weight", target + "/kernel", "conv"),
        Rule(source + r"\.bias", target + "/bias"),
    )


# All families together have more patterns than `re` keeps.
_compiled = functools.cache(re.compile)


class Table(NamedTuple):
    """A family's rules. Paths of `backbone` rules are relative to the backbone."""

    family: str
    backbone: tuple[Rule, ...]
    head: tuple[Rule, ...] = ()
    unused: str = ""  # regular expression for names that no model here has a use for
    # How the names of backbones begin that have such files; none for the family's own first word.
    kinds: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()  # of these backbones, which no shape tells

    def is_of(self, backbone: str) -> bool:
        """Whether a named backbone may have files with these names."""
        return backbone.startswith(self.kinds or self.family.split("_")[0])

    def find(self, name: str, backbone: str = "") -> tuple[str, Rule] | None:
        """The path of an array of this name and the rule that says so; None if no rule does."""
        for rules, prefix in ((self.backbone, backbone), (self.head, "")):
            for rule in rules:
                match = _compiled(rule.pattern).fullmatch(name)
                if match:
                    return prefix + match.expand(rule.path), rule
        return None

    def find_in_head(self, name: str) -> str | None:
        """The path of an array that has its place beside the backbone, else None."""
        found = self._replace(backbone=()).find(name)
        return found and found[0]

    def passes_over(self, name: str) -> bool:
        """Whether the family's files have an array of this name that is of no use here."""
        return bool(self.unused and _compiled(self.unused).fullmatch(name))

    def knows(self, name: str) -> bool:
        """Whether this is a name of the family's."""
        return self.passes_over(name) or self.find(name) is not None


def convert(
    arrays: Mapping[str, Any], table: Table, *, backbone: str = ""
) -> tuple[dict[str, Any], list[str]]:
    """Arrays under vadapt's paths and layouts, and the names that no rule knows.

    Projections that a family keeps apart, such as queries, keys and values, are joined; where one
    of them is lacking, the others count as unknown.

    Args:
        backbone: where the backbone sits in the model, such as "backbone/"; "" if it is the model.
    """
    converted: dict[str, Any] = {}
    parts: dict[str, dict[tuple[int, int], tuple[str, Any]]] = {}
    unknown: list[str] = []
    for name, array in arrays.items():
        found = table.find(name, backbone)
        if found is None:
            unknown.append(name)
            continue
        path, rule = found
        # An array of too few axes for its layout stays as it is, to be told by its shape.
        with contextlib.suppress(TypeError, ValueError):
            array = lazily(LAYOUTS[rule.layout], array)
        if rule.part is not None:
            parts.setdefault(path, {})[rule.part] = (name, array)
        elif path in converted:
            unknown.append(name)  # a second name of the same
        else:
            converted[path] = array
    for path, pieces in parts.items():
        (_, number), *_ = pieces
        if len(pieces) == number and path not in converted:
            converted[path] = lazily(_join, *(pieces[key][1] for key in sorted(pieces)))
        else:
            unknown.extend(name for name, _ in pieces.values())
    return converted, unknown


def _join(*arrays: Any) -> Any:
    numpy = all(isinstance(array, np.ndarray) for array in arrays)
    return (np if numpy else jnp).concatenate(arrays, axis=-1)


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
        named = dict(_named(path, array, rules))
        reverted |= named
        if not named:
            unknown.append(path)
    return reverted, unknown


def _named(path: str, array: Any, rules: list[Rule]) -> Iterator[tuple[str, Any]]:
    """A family's names of an array, and their layout: one name, or one per part."""
    for rule in rules:
        match = re.fullmatch(rule.pattern, path)
        if match is None:
            continue
        if rule.part is None:
            yield match.expand(rule.path), REVERSED[rule.layout](array)
            return
        index, number = rule.part
        size = array.shape[-1] // number
        part = array[..., index * size : (index + 1) * size]
        yield match.expand(rule.path), REVERSED[rule.layout](part)
        if index == number - 1:
            return


def _reversed(rule: Rule, prefix: str) -> Rule:
    """A rule from vadapt's path to the family's name; patterns hold plain groups only."""
    name = re.sub(r"\(\?:([^|)]*)[^)]*\)", r"\1", rule.pattern)  # the first spelling
    groups = re.findall(r"\([^)]*\)", name)
    path = re.escape(prefix) + rule.path
    for number, group in enumerate(groups, start=1):
        name = name.replace(group, f"\\{number}", 1)
        path = path.replace(f"\\{number}", group, 1)
    return Rule(path, name.replace(r"\.", "."), rule.layout, rule.part)


class Family(NamedTuple):
    """The files of one system, as its module in `families` declares them: `FAMILY`.

    Args:
        tables: of the names in its files.
        rank: of tables that know as many names, those of the lowest rank come first.
        whole: its files are of whole systems, and not of backbones with something beside.
        beside: from a backbone's table to one for files that hold the backbone and this.
        made: from a file's names to a table for them alone, or None.
        renamed: arrays under the names of the tables.
        check: refuses arrays that hold what a model computes otherwise; of arrays and patterns of
            names to pass over.
        forms: in transformers, by the name of the family there.
        configs: by transformers' `model_type`, its defaults of what no shape tells.
    """

    tables: tuple[Table, ...] = ()
    rank: int = 0
    whole: bool = False
    beside: Callable[[Table], Table] | None = None
    made: Callable[[Mapping[str, Any]], Table | None] | None = None
    renamed: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    check: Callable[[Mapping[str, Any], Sequence[str]], None] | None = None
    forms: Mapping[str, Any] = MappingProxyType({})
    configs: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
