"""Walking a traced program, for what a compiler makes of it: what is in loops, what is added."""

import jax
from jax.extend import core


def equations(jaxpr):
    """Every equation, and those of the programs inside of it."""
    for equation in jaxpr.eqns:
        yield equation
        for part in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, core.Jaxpr | core.ClosedJaxpr),
        ):
            if isinstance(part, core.ClosedJaxpr):
                part = part.jaxpr
            if isinstance(part, core.Jaxpr):
                yield from equations(part)


def shapes(equation):
    """Those of the arrays that an equation makes."""
    return [value.aval.shape for value in equation.outvars]
