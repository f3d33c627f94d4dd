"""Averages over a batch that is computed in parts: a step says over how much, losses ask here.

A loss that averages over labelled pixels, or over matched objects, divides by a number that differs
from micro-batch to micro-batch. The mean of such means is not the mean over the batch: an image
with eight labelled pixels would weigh as much as one with thousands.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

_counted: contextvars.ContextVar[list[Array] | None] = contextvars.ContextVar(
    "counted", default=None
)
# Of the whole batch, in how many parts.
_given: contextvars.ContextVar[tuple[Iterator[Array], int] | None] = contextvars.ContextVar(
    "given", default=None
)


def batch_average(
    total: Float[Array, "*n"], count: Shaped[Array, ""], *, least: float = 1.0
) -> Float[Array, "*n"]:
    """`total / count` of sums over the batch, where `count` is over the whole batch of a step.

    Where a step computes a batch in micro-batches, the mean of their results is the sum of all
    totals over the sum of all counts.

    Args:
        count: a function of the data; it is found before the model runs. One that the model has a
            part in (weights by scores) is right, too, at the cost of one more forward pass of each
            micro-batch, where there are several. It is not traced within a loop of the loss.
        least: what the batch's count is taken for where there is less.
    """
    count = count.astype(jnp.float32)
    recorded, given = _counted.get(), _given.get()
    if recorded is not None:
        recorded.append(count)
    if given is None:
        return total / jnp.maximum(count, least)
    whole, parts = given
    return total / (jnp.maximum(next(whole), least) / parts)


@contextlib.contextmanager
def counting() -> Iterator[list[Array]]:
    """Collects the counts of the averages that are traced inside, in their order."""
    counts: list[Array] = []
    token = _counted.set(counts)
    try:
        yield counts
    finally:
        _counted.reset(token)


@contextlib.contextmanager
def counted(counts: Sequence[Array], parts: int) -> Iterator[None]:
    """Averages that are traced inside are of one of `parts` micro-batches.

    Args:
        counts: of the whole batch, in the order of the averages.
    """
    token = _given.set((iter(counts), parts))
    try:
        yield
    finally:
        _given.reset(token)
