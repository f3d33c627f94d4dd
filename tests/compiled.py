"""Models called in compiled programs: one by one, their operations compile for much longer."""

import ctypes
import functools
import gc
import math
import mmap
import platform
from pathlib import Path

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


ENOUGH = 2**30  # bytes that a worker may keep from module to module


def drop_all():
    """Let go of all programs and their memory, once they are many; the next modules share some."""
    if resident() < ENOUGH:
        return
    jax.clear_caches()
    gc.collect()
    if platform.libc_ver()[0] == "glibc":  # it keeps what was freed, in pieces, unless asked
        ctypes.CDLL(None).malloc_trim(0)


def resident():
    """Memory of this process in bytes; without bound where nothing says it."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * mmap.PAGESIZE if statm.exists() else math.inf
