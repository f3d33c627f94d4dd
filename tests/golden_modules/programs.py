"""Golden cases without gradients, in one program each: many small ones compile for longer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tests.golden_modules.fields import Fields

Arrays = dict[str, Any]
Builder = Callable[[Fields, Arrays, Arrays], Arrays]


def compiled(build: Builder) -> Builder:
    """The same builder, whose whole numbers are known while it is traced, as under gradients."""

    @functools.wraps(build)
    def call(config: Fields, params: Arrays, inputs: Arrays) -> Arrays:
        floats, rest = split_floats({"param": params, "in": inputs})

        def run(floats: dict[str, Arrays]) -> Arrays:
            return build(
                config, {**floats["param"], **rest["param"]}, {**floats["in"], **rest["in"]}
            )

        return jax.jit(run)(floats)

    return call


def split_floats(sides: dict[str, Arrays]) -> tuple[dict[str, Arrays], dict[str, Arrays]]:
    """Floating-point arrays, and all others."""

    def pick(arrays: Arrays, floating: bool) -> Arrays:
        return {
            name: value
            for name, value in arrays.items()
            if jnp.issubdtype(value.dtype, jnp.floating) == floating
        }

    return (
        {side: pick(arrays, True) for side, arrays in sides.items()},
        {side: pick(arrays, False) for side, arrays in sides.items()},
    )
