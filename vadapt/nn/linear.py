"""Linear layers, and the initializers that published models start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array


def uniform(limit: float) -> Callable[..., Array]:
    """An initialiser: every number uniform in (-limit, limit)."""

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def xavier_linear(
    inputs: int, outputs: int, *, use_bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
    """A linear layer with Xavier-uniform weights and zero bias, as MAE initialises all of them."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        kernel_init=nnx.initializers.xavier_uniform(),
        rngs=rngs,
    )


def uniform_linear(
    inputs: int, outputs: int, *, use_bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
    """A linear layer whose weights and biases are uniform, as PyTorch initializes all of them."""
    init = uniform(inputs**-0.5)
    return nnx.Linear(
        inputs, outputs, use_bias=use_bias, kernel_init=init, bias_init=init, rngs=rngs
    )
