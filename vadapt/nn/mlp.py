"""The MLPs of transformers, plain and gated."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vadapt.nn.activations import gelu_exact
from vadapt.nn.linear import uniform, xavier_linear
from vadapt.nn.norms import LayerNorm


class Mlp(nnx.Module):
    """Two linear layers with an activation between them, and a norm behind it if asked for.

    Args:
        linear: makes the layers, and so says what they start from.
    """

    ROLES: ClassVar[dict[str, tuple[str, ...]]] = {"fc1": ("mlp_in",), "fc2": ("mlp_out",)}

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: Callable[[Array], Array] = gelu_exact,
        use_bias: bool = True,
        norm: LayerNorm | None = None,
        linear: Callable[..., nnx.Linear] = xavier_linear,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        self.fc1 = linear(width, hidden, use_bias=use_bias, rngs=rngs)
        self.norm = norm
        self.fc2 = linear(hidden, width, use_bias=use_bias, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        y = self.activation(self.fc1(x))
        return self.fc2(y if self.norm is None else self.norm(y))


class SwiGLU(nnx.Module):
    """A gated MLP, w3(silu(gate) * value), with gate and value from one fused projection `w12`.

    Args:
        norm: one of the product, before `w3` (the sub-norm of EVA-02, arXiv:2303.11331).

    Source: arXiv:2002.05202.
    """

    ROLES: ClassVar[dict[str, tuple[str, ...]]] = {"w12": ("mlp_in",), "w3": ("mlp_out",)}

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        use_bias: bool = True,
        norm: LayerNorm | None = None,
        rngs: nnx.Rngs,
    ):
        self.w12 = xavier_linear(width, 2 * hidden, use_bias=use_bias, rngs=rngs)
        self.norm = norm
        self.w3 = xavier_linear(hidden, width, use_bias=use_bias, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        gate, value = jnp.split(self.w12(x), 2, axis=-1)
        y = jax.nn.silu(gate) * value
        return self.w3(y if self.norm is None else self.norm(y))


def swiglu_hidden(hidden: int) -> int:
    """The hidden width of a gated MLP that weighs as much as a plain one of `hidden`, as DINOv2's.

    Two thirds, since it has three matrices and not two, rounded up to a multiple of 8.

    >>> swiglu_hidden(4 * 1536)
    4096
    """
    return (int(hidden * 2 / 3) + 7) // 8 * 8


class FeedForward(nnx.Module):
    """Two linear layers with a ReLU between them, initialised as Mask2Former's are."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        def linear(inputs: int, outputs: int) -> nnx.Linear:
            init = nnx.initializers.xavier_normal()
            bias_init = uniform(inputs**-0.5)
            return nnx.Linear(inputs, outputs, kernel_init=init, bias_init=bias_init, rngs=rngs)

        self.fc1, self.fc2 = linear(width, hidden), linear(hidden, width)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        return self.fc2(jax.nn.relu(self.fc1(x)))
