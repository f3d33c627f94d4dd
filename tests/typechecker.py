"""The type checker that tests put on all of vadapt: beartype, with int taken as float."""

import functools
import inspect
import typing

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_jaxtyped = jaxtyping.jaxtyped


def install():
    """Check shapes and types of every call of vadapt from here on; before it is imported."""
    # The hook asks for `jaxtyped` by this name, and that checks arguments twice, with or without
    # shapes: a sixth of the time to trace a model, and five times that to draw a scene.
    jaxtyping.jaxtyped = once
    jaxtyping.install_import_hook(["vadapt"], f"{__name__}.check")


def once(function=None, *, typechecker):
    """Check each call of a function once, and give shapes a scope where it names some."""
    if function is None:
        return functools.partial(once, typechecker=typechecker)
    if not inspect.isfunction(function):
        return _jaxtyped(function, typechecker=typechecker)
    function.__annotations__ = {
        name: _resolved(hint, function) for name, hint in function.__annotations__.items()
    }
    checked = check(function)
    shaped = any(map(_has_shapes, function.__annotations__.values()))
    return _jaxtyped(checked, typechecker=None) if shaped else checked


def _resolved(hint, function):
    """A hint that is written as text; anything, where it names what is there for checkers alone."""
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, function.__globals__)
    except NameError:
        return typing.Any


def _has_shapes(hint):
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(map(_has_shapes, typing.get_args(hint)))
