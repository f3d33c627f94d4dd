"""Random numbers of any shape out of programs of few sizes: tests make many small models.

JAX compiles half a second for every new shape that an initializer draws. Number i of a draw is a
function of the key and of i alone, so that the first of a larger draw are those of a smaller one.
"""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers

DRAWS = ("normal", "truncated_normal", "uniform")
SMALLEST, LARGEST = 4**4, 4**11


def install():
    """Let `jax.random` and JAX's initializers draw so."""
    used_by_initializers = initializers.normal.__globals__["random"]
    for name in DRAWS:
        draw = quick(getattr(jax.random, name))
        setattr(jax.random, name, draw)
        setattr(used_by_initializers, name, draw)


def quick(original):
    """Return a function that gives what `original` does; what is traced is left to that."""
    signature = inspect.signature(original)

    @functools.wraps(original)
    def draw(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        shape = bound.arguments["shape"]
        traced = any(isinstance(x, jax.core.Tracer) for x in bound.args)
        placed = any(x is not None for x in bound.kwargs.values())
        if traced or placed or not _is_small(shape):
            return original(*args, **kwargs)
        size = math.prod(shape)
        bound.arguments["shape"] = (4 ** math.ceil(math.log(max(size, SMALLEST), 4)),)
        numbers = np.asarray(original(*bound.args, **bound.kwargs))
        return jnp.asarray(numbers[:size].reshape(shape))

    return draw


def _is_small(shape):
    sides = isinstance(shape, tuple | list) and all(isinstance(side, int) for side in shape)
    return sides and math.prod(shape) <= LARGEST
