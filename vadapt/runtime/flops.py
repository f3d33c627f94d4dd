"""Counting the matrix products of a traced program, with loops at their full length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core


def matmul_flops(jaxpr: core.Jaxpr, *, unroll: bool = True) -> int:
    """FLOPs of all matrix products and convolutions, a multiplication and an addition each.

    Args:
        unroll: count what a scan does as often as it is done, not once, as compilers do. A
            `while` counts once, its length is not known; a kernel counts as it says itself.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":  # says of all its instances what it does
            total += getattr(equation.params["cost_estimate"], "flops", 0)
            continue
        times = equation.params["length"] if unroll and equation.primitive.name == "scan" else 1
        inner = [matmul_flops(part, unroll=unroll) for part in _parts(equation.params)]
        if equation.primitive.name == "cond":
            inner = [max(inner)]
        total += times * sum(inner) + _own_flops(equation)
    return total


def _own_flops(equation: Any) -> int:
    shapes = [value.aval.shape for value in equation.invars[:2]]
    if equation.primitive.name == "dot_general":
        contracted = equation.params["dimension_numbers"][0][0]
        depth = math.prod(shapes[0][axis] for axis in contracted)
    elif equation.primitive.name == "conv_general_dilated":
        depth = math.prod(shapes[1]) // shapes[1][equation.params["dimension_numbers"].rhs_spec[0]]
    else:
        return 0
    return 2 * depth * math.prod(equation.outvars[0].aval.shape)


def _parts(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """Programs inside a step of a program."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item
