"""Options of what is chosen by name, checked against the signature of what they go to."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vadapt.errors import ConfigError, nearest

# What code gives and no one sets.
GIVEN = frozenset({"self", "model", "rngs", "args", "kwargs"})


def takes(*others: Callable[..., Any]) -> Callable[[Any], Any]:
    """Say where a function's `**options` go, so that they can be checked by their names.

    >>> def paint(colour: str = "red"): ...
    >>> @takes(paint)
    ... def build(size: int, **options): ...
    >>> sorted(accepted(build))
    ['colour', 'size']
    """

    def mark(function: Any) -> Any:
        function.options_go_to = others
        return function

    return mark


def together(*targets: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes the options of all of these."""

    @takes(*targets)
    def take(**options: Any) -> None: ...

    return take


def accepted(target: Callable[..., Any]) -> dict[str, Any]:
    """The options that a function or a class takes, and the types that they may have."""
    if isinstance(target, functools.partial):
        return dict(list(accepted(target.func).items())[len(target.args) :])
    called = target.__init__ if inspect.isclass(target) else target
    try:
        hints = typing.get_type_hints(called)
    except (NameError, TypeError):  # a type that is there for type checkers alone
        hints = {}
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(called).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            for other in getattr(target, "options_go_to", ()):
                found |= accepted(other)
        elif name not in GIVEN:
            found[name] = hints.get(name, Any)
    return found


def check(
    section: str,
    name: str,
    target: Callable[..., Any],
    options: Mapping[str, Any],
    *,
    given: Sequence[str] = (),
    complete: bool = True,
) -> None:
    """Refuse an option that a target does not take, one of another type, and a missing one.

    Args:
        section: of a config in which such options stand, for the error.
        name: by which the target was chosen.
        given: parameters that code fills in.
        complete: whether these are all options; else code fills in what is missing.

    Raises:
        ConfigError: names the option, the nearest one, and how to leave it out.

    >>> def lora(model, rank: int = 8, alpha: float | None = None): ...
    >>> check("method", "lora", lora, {"rnak": 4})
    Traceback (most recent call last):
    vadapt.errors.ConfigError: lora has no option 'rnak'; nearest: 'rank'. A recipe that brings it \
for something else does without: --drop=method.rnak
    >>> check("method", "lora", lora, {"rank": "four"})
    Traceback (most recent call last):
    vadapt.errors.ConfigError: lora: rank='four' is no int
    """
    known = {key: hint for key, hint in accepted(target).items() if key not in given}
    options = {key: value for key, value in options.items() if key not in GIVEN}
    missing = [key for key in known if key not in options and _is_required(target, key)]
    if missing and complete:
        raise ConfigError(
            f"{name} needs {', '.join(missing)}: give "
            + " ".join(f"--config.{section}.{key}=..." for key in missing)
        )
    unknown = [] if _takes_any(target) else [key for key in options if key not in known]
    if unknown:
        dropped = ",".join(f"{section}.{key}" for key in unknown)
        raise ConfigError(
            f"{name} has no option {', '.join(map(repr, unknown))}; {nearest(unknown[0], known)}. "
            f"A recipe that brings it for something else does without: --drop={dropped}"
        )
    for key, value in options.items():
        if not _fits(value, known.get(key, Any)):
            raise ConfigError(f"{name}: {key}={value!r} is no {_words(known[key])}")


def _takes_any(target: Callable[..., Any]) -> bool:
    """Whether options go where nothing says."""
    if isinstance(target, functools.partial):
        return _takes_any(target.func)
    others = getattr(target, "options_go_to", ())
    called = target.__init__ if inspect.isclass(target) else target
    kinds = {parameter.kind for parameter in inspect.signature(called).parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        return False
    return not others or any(map(_takes_any, others))


def _is_required(target: Callable[..., Any], name: str) -> bool:
    if isinstance(target, functools.partial):
        return name not in target.keywords and _is_required(target.func, name)
    called = target.__init__ if inspect.isclass(target) else target
    parameters = inspect.signature(called).parameters
    if name in parameters:
        return parameters[name].default is inspect.Parameter.empty
    others = getattr(target, "options_go_to", ())
    return any(name in accepted(other) and _is_required(other, name) for other in others)


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in typing.get_args(hint))
    if hint in (None, type(None)):
        return value is None
    if hint is bool or hint is str:
        return isinstance(value, hint)
    if hint is int or hint is float:
        kinds = (int,) if hint is int else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    if inspect.isclass(origin) and issubclass(origin, Sequence):
        return isinstance(value, list | tuple)
    return True  # the target's own business


def _words(hint: Any) -> str:
    text = hint.__name__ if inspect.isclass(hint) and not typing.get_args(hint) else str(hint)
    for name in ("collections.abc.", "typing."):
        text = text.replace(name, "")
    return text.replace(" | ", " or ")
