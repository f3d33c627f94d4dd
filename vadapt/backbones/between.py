"""What a method does between the blocks or stages of a backbone, which itself stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

# Called with the number of a block (of a stage, where there are stages) and its output, -1 and
# what enters the first; gives what is seen of that place from outside, and what goes on.
Between = Callable[[int, Array], tuple[Array, Array]]


def begin(method: Any, images: Float[Array, "b h w c"]) -> Between:
    """What to call between blocks in one forward pass of these images; without a method, nothing.

    Args:
        method: the `between` of a model: None, or a module whose `begin(images)` gives it.
    """
    return (lambda number, x: (x, x)) if method is None else method.begin(images)
