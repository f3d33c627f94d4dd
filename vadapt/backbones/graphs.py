"""Layers of vision graphs: nodes that take from their nearest neighbours, each with an MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vadapt.errors import ShapeError
from vadapt.kernels.group_knn import Bias, group_max_relative
from vadapt.nn.activations import gelu_exact
from vadapt.nn.convolutions import FAN_IN, BatchNorm
from vadapt.nn.drop import OptionalKey, drop_path, split_key
from vadapt.sharding import over_batch

LANES = 128  # of a TPU's vectors
PARTS = 4  # of channels in the layer that mixes nodes with messages, whatever the groups of a graph


class PartsLinear(nnx.Module):
    """A linear layer for each of several parts of the channels: a grouped 1x1 convolution."""

    def __init__(self, width: int, parts: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal", batch_axis=0)
        shape = (parts, width // parts, width // parts)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return self._shifted(_by_parts(x, self.kernel[...]))

    def alternating(
        self, x: Float[Array, "*b c"], others: Float[Array, "*b c"]
    ) -> Float[Array, "*b d"]:
        """The layer of channels that alternate: x's first, the others' first, x's second, ..."""
        kernel = self.kernel[...]
        if x.shape[-1] >= LANES:
            return self._shifted(_interleaved(x, others, kernel))

        def either(x: Array, others: Array, kernel: Array) -> Array:
            return jax.lax.platform_dependent(
                x, others, kernel, tpu=_side_by_side, default=_interleaved
            )

        def on_each_device(x: Array, others: Array, kernel: Array) -> Array:
            return over_batch(either, x, others, whole=kernel)

        # What is put together is put together again for the gradient rather than kept. Devices add
        # up the gradients of parts, not those of a matrix with zeros.
        return self._shifted(jax.checkpoint(on_each_device)(x, others, kernel))

    def _shifted(self, y: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return y + jnp.broadcast_to(self.bias[...], y.shape)


def _by_parts(x: Float[Array, "*b d"], kernel: Float[Array, "p i o"]) -> Float[Array, "*b d"]:
    parts = x.reshape(*x.shape[:-1], *kernel.shape[:2])
    return jnp.einsum("...pi,pio->...po", parts, kernel).reshape(x.shape)


def _interleaved(x: Array, others: Array, kernel: Float[Array, "p i o"]) -> Float[Array, "*b d"]:
    both = jnp.stack([x, others], axis=-1).reshape(*x.shape[:-1], -1)
    return _by_parts(both, kernel)


def _side_by_side(x: Array, others: Array, kernel: Float[Array, "p i o"]) -> Float[Array, "*b d"]:
    """As one product with a matrix that is zero between parts.

    On a TPU channels that are fewer than its lanes are interleaved, and cut into parts, by way of
    main memory: a layer of 80 channels, forward and backward, moved 338 MB where this moves 129.
    """
    parts, inputs, outputs = kernel.shape
    own = jnp.eye(parts, dtype=kernel.dtype).reshape(parts, 1, parts, 1)
    matrices = [kernel[:, first::2].reshape(parts, inputs // 2, 1, outputs) for first in (0, 1)]
    rows = [(matrix * own).reshape(-1, parts * outputs) for matrix in matrices]
    return jnp.concatenate([x, others], axis=-1) @ jnp.concatenate(rows)


class LinearNorm(nnx.Module):
    """A linear layer with a bias, of parts of the channels if asked, and batch norm."""

    def __init__(self, inputs: int, outputs: int, *, parts: int = 1, rngs: nnx.Rngs):
        self.linear: Any = (
            nnx.Linear(inputs, outputs, kernel_init=FAN_IN, rngs=rngs)
            if parts == 1
            else PartsLinear(inputs, parts, rngs=rngs)
        )
        self.norm = BatchNorm(outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b d"]:
        return self.norm(self.linear(x))

    def alternating(
        self, x: Float[Array, "*b c"], others: Float[Array, "*b c"]
    ) -> Float[Array, "*b d"]:
        """Of channels that alternate between two arrays; see `PartsLinear.alternating`."""
        return self.norm(self.linear.alternating(x, others))


class NormedMlp(nnx.Module):
    """fc2(gelu(fc1(x))), four times as wide inside, with a batch norm in both layers."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.fc1 = LinearNorm(width, 4 * width, rngs=rngs)
        self.fc2 = LinearNorm(4 * width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return self.fc2(gelu_exact(self.fc1(x)))


class GraphConv(nnx.Module):
    """Max-relative graph convolution: act(norm(mix(node, message))), twice as wide as the nodes.

    A message is, a channel, the most by which one of the node's neighbours exceeds it. Neighbours
    are the k nearest in each group of channels; one group is ViG's graph, more are GKGNet's. A
    node's channels and those of its message alternate, so that each part mixes both of its own.

    Args:
        dilation: of the nearest k * dilation, every dilation-th is a neighbour.
        activation: the last step; GELU in all published models.

    Raises:
        ShapeError: a width that is odd or no multiple of the groups.

    Source: DeepGCNs, arXiv:1904.03751; Vision GNN, arXiv:2206.00272; GKGNet, arXiv:2308.14378.
    """

    def __init__(
        self,
        width: int,
        *,
        groups: int = 1,
        k: int = 9,
        dilation: int = 1,
        activation: Callable[[Array], Array] = gelu_exact,
        rngs: nnx.Rngs,
    ):
        if width % 2 or width % groups:
            raise ShapeError(
                f"a graph of {width} channels in {groups} groups: channels must be even and a "
                "multiple of the groups"
            )
        self.groups, self.k, self.dilation = groups, k, dilation
        self.activation = activation
        self.mix = LinearNorm(2 * width, 2 * width, parts=PARTS, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b n c"], sources: Float[Array, "b m c"], bias: Bias = None
    ) -> tuple[Float[Array, "b n e"], Int[Array, "b g n k"]]:
        """New nodes, and the neighbours of each by group.

        Args:
            sources: what may be a neighbour.
            bias: added to the distances, see `group_knn`.
        """
        messages, ids = group_max_relative(
            x, sources, groups=self.groups, k=self.k, dilation=self.dilation, bias=bias
        )
        return self.activation(self.mix.alternating(x, messages)), ids


class GraphBlock(nnx.Module):
    """x + fc2(conv(fc1(x))), the graph's branch; then x + mlp(x)."""

    def __init__(
        self,
        width: int,
        *,
        groups: int = 1,
        k: int = 9,
        dilation: int = 1,
        drop_path_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.fc1 = LinearNorm(width, width, rngs=rngs)
        self.conv = GraphConv(width, groups=groups, k=k, dilation=dilation, rngs=rngs)
        self.fc2 = LinearNorm(2 * width, width, rngs=rngs)
        self.mlp = NormedMlp(width, rngs=rngs)
        self.drop_path_rate = drop_path_rate

    def take(
        self,
        x: Float[Array, "b n c"],
        sources: Callable[[Array], Array],
        bias: Bias = None,
        key: OptionalKey = None,
    ) -> tuple[Float[Array, "b n c"], Int[Array, "b g n k"]]:
        """The graph's branch added to the nodes, and each node's neighbours.

        Args:
            sources: what may be a neighbour, of the nodes as `fc1` leaves them.
        """
        nodes = self.fc1(x)
        y, ids = self.conv(nodes, sources(nodes), bias)
        return x + drop_path(self.fc2(y), self.drop_path_rate, key), ids

    def update(
        self,
        x: Float[Array, "b n c"],
        sources: Callable[[Array], Array],
        bias: Bias = None,
        key: OptionalKey = None,
    ) -> tuple[Float[Array, "b n c"], Int[Array, "b g n k"]]:
        """Both branches; see `take`."""
        take_key, mlp_key = split_key(key, 2)
        x, ids = self.take(x, sources, bias, take_key)
        return x + drop_path(self.mlp(x), self.drop_path_rate, mlp_key), ids
