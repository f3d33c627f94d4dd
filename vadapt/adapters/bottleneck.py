"""The bottleneck that adapters share, what scales it, and layers with one behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vadapt.adapters.changed import Changed
from vadapt.errors import ConfigError, nearest
from vadapt.nn.drop import OptionalKey, dropout
from vadapt.nn.linear import uniform
from vadapt.nn.norms import LayerNorm
from vadapt.partition import Adapter, Constant, mark

NORMS = ("in", "out", "none")


class Bottleneck(nnx.Module):
    """Norm, down, activation, dropout, up; no residual inside. Zero at the start.

    Args:
        norm: "in" normalises the input, "none" does not. "out" makes a norm that is for others to
            apply to what comes out.
        norm_epsilon: 1e-5 as in released code whose trunks have 1e-6.
        dropout: rate on the hidden activations, in training.
        down_init, up_init: of the kernels: by default Kaiming-uniform with a = sqrt(5), and zeros.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        norm: str = "in",
        norm_epsilon: float = 1e-5,
        dropout: float = 0.1,
        activation: Callable[[Array], Array] = jax.nn.relu,
        down_init: Callable[..., Array] | None = None,
        up_init: Callable[..., Array] = nnx.initializers.zeros,
        rngs: nnx.Rngs,
    ):
        if norm not in NORMS:
            raise ConfigError(f"unknown adapter norm {norm!r}; {nearest(norm, NORMS)}")
        if hidden < 1:
            raise ConfigError(f"an adapter needs a width of at least 1, got {hidden}")
        down_init = down_init or uniform(width**-0.5)
        self.dropout, self.activation, self.norm_first = dropout, activation, norm == "in"
        self.norm = None if norm == "none" else LayerNorm(width, epsilon=norm_epsilon)
        self.down = nnx.Linear(width, hidden, kernel_init=down_init, rngs=rngs)
        self.up = nnx.Linear(hidden, width, kernel_init=up_init, rngs=rngs)
        mark(self, Adapter)

    def __call__(self, x: Float[Array, "*b d"], key: OptionalKey = None) -> Float[Array, "*b d"]:
        hidden = self.norm(x) if self.norm is not None and self.norm_first else x
        hidden = self.activation(self.down(hidden))
        return self.up(dropout(hidden, self.dropout, key))


class LayerGate(nnx.Module):
    """One scale for a whole layer, fixed or learned."""

    def __init__(self, initial: float, *, learnable: bool):
        value = jnp.full((1,), initial, jnp.float32)
        self.scale = Adapter(value) if learnable else Constant(value)

    def __call__(
        self, frozen: Float[Array, "*b d"], side: Float[Array, "*b d"]
    ) -> Float[Array, "*b 1"]:
        return jnp.broadcast_to(self.scale[...].astype(side.dtype), (*side.shape[:-1], 1))


class Followed(Changed):
    """A layer, or a block, with an adapter of what it gives behind it: y + adapter(y)."""

    adds = ("adapter",)

    def __init__(self, layer: Any, adapter: Any):
        super().__init__(layer)
        self.adapter = adapter

    def __call__(self, inputs: Float[Array, "*b"], *args: Any, **kwargs: Any) -> Array:
        frozen: Any = super().__call__
        y = frozen(inputs, *args, **kwargs)
        return y + self.adapter(y)
