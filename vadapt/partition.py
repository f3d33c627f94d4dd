"""Partition: roles by variable type, and the split into the trees that a train step sees.

A variable carries its role in its type: backbone weights are `nnx.Param`, what a method adds is
`Adapter` or `Prompt`, what a task puts on top is `Head`; tables, statistics and queues are state.
A filter over types and paths says which parameters train. Gradients, optimizer state, norms and
checkpoints then see that tree only, which is what makes adaptation cheap.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

from vadapt.errors import ConfigError


class Adapter(nnx.Param):
    """A weight that a method adds to a frozen backbone."""


class Prompt(nnx.Param):
    """A learned token that a method adds to the sequence."""


class Head(nnx.Param):
    """A weight of what a task puts on top of the backbone: a decoder, a classifier."""


class Frozen(nnx.Param):
    """A weight that no setting trains, "everything" included: one of a fixed teacher."""


class Factor(Frozen):
    """A part of a frozen weight that a method has made of it; what it is made of stays as it is."""


class Constant(nnx.Variable):
    """A table that never trains: fixed position embeddings, fixed scales. Imported and saved."""


class Statistic(nnx.BatchStat):
    """A running statistic, changed by the forward pass in training."""


class Queue(nnx.Variable):
    """A memory of past features or labels, changed by the task."""


class Teacher(nnx.Variable):
    """A weight that follows another one (an exponential moving average), never a gradient."""


Tree = dict[Any, Any]  # nested plain dicts with arrays as leaves
Path = tuple[Any, ...]
Trainable = type | types.UnionType | str | Sequence[Any] | Callable[[Path, Any], bool]

DEFAULT = Adapter | Prompt | Head
EVERYTHING = nnx.Param


class Partition(NamedTuple):
    """A model taken apart; every tree is a nested plain dict, so any jax function takes it."""

    graph: Any  # static: modules and settings, hashable
    trainable: Tree  # parameters that the filter selects
    frozen: Tree  # all other parameters
    state: Tree  # all variables that are not parameters


def biases(path: Path, value: Any) -> bool:
    """Selects every bias (BitFit, arXiv:2106.10199, without its head; add `Head` for that)."""
    return path[-1] == "bias"


def norms(path: Path, value: Any) -> bool:
    """Selects scales and biases of every norm."""
    return any("norm" in str(part) for part in path[:-1])


def class_token(path: Path, value: Any) -> bool:
    """Selects the class token."""
    return path[-1] == "cls_token"


NAMED: dict[str, Any] = {
    "default": DEFAULT,
    "everything": EVERYTHING,
    "head": Head,
    "biases": biases,
    "bias": biases,
    "norm": norms,
    "cls": class_token,
    "prompt": Prompt,
    "adapter": Adapter,
}


def split(model: nnx.Module, trainable: Trainable = DEFAULT) -> Partition:
    """Splits a model into (graph, trainable, frozen, state).

    Args:
        trainable: what trains: variable types (`Adapter | Head`), a name out of `NAMED` such as
            "default", "everything", "head" and "biases", "partial-2" for the last two blocks and
            the norms behind them (2203.12119), a regular expression for whole paths such as
            "blocks/(10|11)/.*", a function of (path, variable), or a list of these (their union),
            which a string separates by commas: "biases,head".

    Raises:
        ConfigError: a pattern or a function selects nothing; lists the nearest paths.

    >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    >>> parts = split(model, "biases")
    >>> sorted(parts.trainable), sorted(parts.frozen)
    (['bias'], ['kernel'])
    """
    selects = selector(model, trainable)

    def trains(path: Path, variable: Any) -> bool:
        return _may_train(variable) and selects(path, variable)

    graph, chosen, rest, state = nnx.split(model, trains, nnx.Param, ...)
    return Partition(graph, *(nnx.to_pure_dict(part) for part in (chosen, rest, state)))


def merge(graph: Any, trainable: Tree, frozen: Tree, state: Tree) -> Any:
    """The model that `split` took apart, with these values; works on tracers inside a jit."""
    return nnx.merge(graph, trainable, frozen, state)


def mark(module: Any, kind: type[nnx.Variable]) -> Any:
    """Gives every parameter of a module the role `kind`, in place; returns the module.

    >>> head = mark(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), Head)
    >>> type(head.kernel).__name__
    'Head'
    """
    for _, node in list(nnx.iter_graph(module)):
        if not isinstance(node, nnx.Module):
            continue
        for name, value in list(vars(node).items()):
            if isinstance(value, nnx.Param):
                setattr(node, name, kind(value[...]))
    return module


def path_name(path: Path) -> str:
    """A path as people write it: ("blocks", 0, "norm") is "blocks/0/norm"."""
    return "/".join(str(part) for part in path)


def variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Every variable of a model by its path name, sorted as the model lists them."""
    return {path_name(path): value for path, value in nnx.to_flat_state(nnx.state(model))}


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict as {path name: leaf}."""
    return dict(_walk(tree, prefix))


def follow(teacher: nnx.Module, student: nnx.Module, decay: float) -> None:
    """Move a teacher towards the student, in place: decay * teacher + (1 - decay) * student.

    Every variable of type `Teacher` follows the student's of the same path.

    >>> student = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    >>> teacher = mark(nnx.clone(student), Teacher)
    >>> student.bias[...] = student.bias[...] + 1.0
    >>> follow(teacher, student, 0.75)
    >>> teacher.bias[...].tolist()
    [0.25]
    """
    theirs = flatten(nnx.to_pure_dict(nnx.state(student)))
    state = nnx.state(teacher, Teacher)
    moved = {
        path: decay * variable[...] + (1.0 - decay) * theirs[path_name(path)]
        for path, variable in nnx.to_flat_state(state)
    }
    nnx.update(teacher, nnx.from_flat_state(moved))


def choose(tree: Mapping[Any, Any], keep: Callable[[str], bool], prefix: str = "") -> Tree:
    """The part of a nested dict whose path names a function keeps.

    >>> choose({"a": {"b": 1, "c": 2}, "d": 3}, lambda path: path != "a/b")
    {'a': {'c': 2}, 'd': 3}
    """
    found: Tree = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            if inner := choose(value, keep, f"{prefix}{key}/"):
                found[key] = inner
        elif keep(f"{prefix}{key}"):
            found[key] = value
    return found


def join(tree: Mapping[Any, Any], other: Mapping[Any, Any]) -> Tree:
    """Two nested dicts in one; what both have is the second one's.

    >>> join({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": 4})
    {'a': {'b': 1, 'c': 3}, 'd': 4}
    """
    found = dict(tree)
    for key, value in other.items():
        old = found.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            value = join(old, value)
        found[key] = value
    return found


def count(tree: Any) -> int:
    """Return the number of numbers in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def selector(model: nnx.Module, trainable: Trainable) -> Callable[[Path, Any], bool]:
    """The predicate of (path, variable) behind a `trainable` setting; see `split`."""
    if isinstance(trainable, str):
        return _by_name(model, trainable)
    if isinstance(trainable, (type, types.UnionType)):
        kinds = typing.get_args(trainable) or (trainable,)
        return lambda path, variable: _is_a(variable, kinds)
    if isinstance(trainable, Sequence):
        parts = [selector(model, part) for part in trainable]
        return lambda path, variable: any(part(path, variable) for part in parts)
    return trainable


def _by_name(model: nnx.Module, name: str) -> Callable[[Path, Any], bool]:
    # As a tuple on the command line, too. Paths have no commas; in a pattern they count: x{1,3}.
    listed = re.fullmatch(r"\((.*,.*)\)", name)
    names = re.split(r",(?![^{]*\})", listed[1] if listed else name)
    if len(names) > 1:
        return selector(model, [part.strip(" '\"") for part in names if part.strip()])
    if name in NAMED:
        return selector(model, NAMED[name])
    if partial := re.fullmatch(r"partial-(\d+)", name):
        return _last_blocks(model, int(partial[1]))
    pattern = re.compile(name)
    paths = [key for key, value in variables(model).items() if _may_train(value)]
    if not any(pattern.fullmatch(path) for path in paths):
        raise ConfigError(
            f"no parameter matches {name!r}; nearest: {', '.join(_nearest_paths(name, paths))}. "
            f"Patterns match whole paths; names are {', '.join(NAMED)}, partial-1, ... See "
            "vadapt.partition.summary(model)."
        )
    return lambda path, variable: pattern.fullmatch(path_name(path)) is not None


def _last_blocks(model: nnx.Module, number: int) -> Callable[[Path, Any], bool]:
    """Selects the backbone's last blocks, through all stages, and the norms behind them."""
    block = re.compile(r"(?:backbone/)?(?:blocks/(\d+)|stages/(\d+)/(\d+))/.*")

    def place(path: str) -> tuple[int, ...] | None:
        found = block.fullmatch(path)
        return None if found is None else tuple(int(part) for part in found.groups() if part)

    places = sorted({found for path in variables(model) if (found := place(path)) is not None})
    if not 1 <= number <= len(places):
        raise ConfigError(f"partial-{number} of a model of {len(places)} blocks")
    last = places[-number:]
    behind = re.compile(r"(?:backbone/)?norms?/.*")

    def selects(path: Path, variable: Any) -> bool:
        name = path_name(path)
        return place(name) in last or behind.fullmatch(name) is not None

    return selects


def _nearest_paths(pattern: str, paths: list[str], number: int = 4) -> list[str]:
    def likeness(path: str) -> float:
        return difflib.SequenceMatcher(None, pattern, path, autojunk=False).ratio()

    return sorted(paths, key=likeness, reverse=True)[:number]


def _may_train(variable: Any) -> bool:
    return _is_a(variable, nnx.Param) and not _is_a(variable, Frozen)


def _is_a(variable: Any, kinds: Any) -> bool:
    # In a split the values are variables; nnx may also hand over a VariableState with a `type`.
    kind = variable.type if hasattr(variable, "type") else type(variable)
    return issubclass(kind, kinds)


def _walk(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _walk(value, name + "/")
        else:
            yield name, value


def summary(model: nnx.Module, trainable: Trainable = DEFAULT, depth: int = 1) -> str:
    """A table of what trains and what is frozen, ending in the line that people quote.

    Args:
        depth: how many path parts name a row; block numbers are joined into one row.

    >>> print(summary(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), "biases"))
    part    trains  frozen
    bias         3       0
    kernel       0       6
    trainable: 3 of 9 parameters (33.333%), 12 B; frozen: 24 B
    """
    parts = split(model, trainable)
    rows: dict[str, list[int]] = {}
    for column, tree in enumerate((parts.trainable, parts.frozen)):
        for path, leaf in flatten(tree).items():
            names = [name for name in path.split("/") if not name.isdigit()]
            rows.setdefault("/".join(names[:depth]), [0, 0])[column] += leaf.size
    table = [("part", "trains", "frozen")]
    table += [(name, f"{row[0]:,}", f"{row[1]:,}") for name, row in sorted(rows.items())]
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {trains:>{widths[1]}}  {frozen:>{widths[2]}}"
        for name, trains, frozen in table
    ]
    number, total = count(parts.trainable), count(parts.trainable) + count(parts.frozen)
    lines.append(
        f"trainable: {number:,} of {total:,} parameters ({100 * number / max(total, 1):.3f}%), "
        f"{human_bytes(num_bytes(parts.trainable))}; frozen: {human_bytes(num_bytes(parts.frozen))}"
    )
    return "\n".join(lines)


def num_bytes(tree: Tree) -> int:
    """Return the bytes that the arrays of a tree, or their shapes, take in memory."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def human_bytes(number: float) -> str:
    """A size for people: 1536 is "1.5 KiB".

    >>> human_bytes(1536), human_bytes(5 * 2**30)
    ('1.5 KiB', '5.0 GiB')
    """
    if number < 1024:
        return f"{int(number)} B"
    for unit in ("KiB", "MiB", "GiB"):
        number /= 1024
        if number < 1024:
            return f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TiB"
