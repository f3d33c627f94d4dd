"""Models called in compiled programs: one by one, their operations compile for much longer."""

import ctypes
import functools
import gc
import platform

import jax
from flax import nnx


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compiled(function, graph, static, state, *arguments):
    return function(nnx.merge(graph, state), *arguments, **dict(static))


def run(function, model, *arguments, **static):
    """Return `function(model, *arguments, **static)`, compiled once for models of one kind.

    Args:
        function: of a model, or the name of one of its methods.
        static: hashable; lists become tuples.
    """
    if isinstance(function, str):
        function = _method(function)
    static = tuple(
        (name, tuple(value) if isinstance(value, list) else value)
        for name, value in sorted(static.items())
    )
    graph, state = nnx.split(model)
    return _compiled(function, graph, static, state, *arguments)


@functools.cache
def _method(name):
    def call(model, *arguments, **static):
        return getattr(model, name)(*arguments, **static)

    return call


def drop_all():
    """Let go of all programs and of their memory."""
    jax.clear_caches()
    gc.collect()
    if platform.libc_ver()[0] == "glibc":  # it keeps what was freed, in pieces, unless asked
        ctypes.CDLL(None).malloc_trim(0)
