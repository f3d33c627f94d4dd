"""FRPT's head for retrieval: category-specific awareness, GeM pooling, a norm and a classifier.

Source: Fine-grained Retrieval Prompt Tuning, arXiv:2207.14465, and its released code; GeM
pooling arXiv:1711.02512; the norm before the classifier arXiv:1903.07071.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vadapt.errors import ConfigError
from vadapt.heads.linear import LabelPredictions
from vadapt.nn.convolutions import BatchNorm, ConvNorm
from vadapt.nn.drop import OptionalKey
from vadapt.partition import Head, mark


def instance_norm(x: Float[Array, "b h w d"], epsilon: float = 1e-5) -> Float[Array, "b h w d"]:
    """Each channel of each image less its mean, over its deviation, in float32."""
    y = x.astype(jnp.float32)
    variance = y.var(axis=(1, 2), keepdims=True)
    y = jax.nn.standardize(y, axis=(1, 2), variance=variance, epsilon=epsilon)
    return y.astype(x.dtype)


class CategoryAwareness(nnx.Module):
    """A map whose channels are kept, or normed within an image, by a gate; and two convolutions.

    Args:
        width: channels of the map, and of what becomes of it.
        reduction: channels of the map for one within the gate.

    Raises:
        ConfigError: the gate would have no channel, or the convolutions would have none.

    >>> from vadapt.partition import count, split
    >>> head = nnx.eval_shape(lambda: CategoryAwareness(2048, rngs=nnx.Rngs(0)))
    >>> count(split(head).trainable)
    29366272
    """

    def __init__(self, width: int, *, reduction: int = 1, rngs: nnx.Rngs):
        if not 1 <= reduction <= width or width < 2:
            raise ConfigError(
                f"a gate of {width} channels with reduction={reduction}; it is from 1 to the "
                "number of channels, of which there are at least 2"
            )
        hidden = width // reduction
        self.squeeze = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.excite = nnx.Linear(hidden, width, use_bias=False, rngs=rngs)
        first = ConvNorm(width, width // 2, 1, rngs=rngs)
        self.layers = nnx.List([first, ConvNorm(width // 2, width, 3, rngs=rngs)])
        mark(self, Head)

    def gated(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """Return gate * x + (1 - gate) * instance_norm(x), the gate by an image's means."""
        means = x.mean(axis=(1, 2), keepdims=True)
        gate = jax.nn.sigmoid(self.excite(jax.nn.relu(self.squeeze(means))))
        return x * gate + instance_norm(x) * (1 - gate)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        first, second = self.layers
        return second(first(self.gated(x)))


class GeM(nnx.Module):
    """The generalized mean of a map's places, by a learned power, in float32.

    Numbers below `floor` count as that.
    """

    def __init__(self, power: float = 3.0, *, floor: float = 1e-6):
        self.floor = floor
        self.power = nnx.Param(jnp.full((1,), power))
        mark(self, Head)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b d"]:
        power = self.power[...].astype(jnp.float32)
        logs = jnp.log(jnp.maximum(x.astype(jnp.float32), self.floor))
        # By logarithms, so that no power of a large number overflows.
        top = jax.lax.stop_gradient(logs.max(axis=(1, 2), keepdims=True))
        powers = jnp.exp((logs - top) * power[None, None, None])
        means = jnp.log(powers.mean(axis=(1, 2))) / power[None] + top[:, 0, 0]
        return jnp.exp(means).astype(x.dtype)


class RetrievalLabels(nnx.Module):
    """The last map by `CategoryAwareness` and `GeM`, normalized, and one linear layer.

    Images are compared by the cosine of what `embed` gives of their maps.

    Args:
        widths: channels of the maps.
        reduction: see `CategoryAwareness`.
    """

    def __init__(
        self, widths: Sequence[int], num_labels: int, *, reduction: int = 1, rngs: nnx.Rngs
    ):
        width = widths[-1]
        self.awareness = CategoryAwareness(width, reduction=reduction, rngs=rngs)
        self.pool = GeM()
        self.norm = BatchNorm(width, rngs=rngs)
        init = nnx.initializers.normal(0.001)
        self.linear = nnx.Linear(width, num_labels, use_bias=False, kernel_init=init, rngs=rngs)
        mark(self, Head)

    def embed(self, maps: Sequence[Float[Array, "b _h _w _d"]]) -> Float[Array, "b d"]:
        """What an image is found by: the pooled map, before the norm."""
        return self.pool(self.awareness(maps[-1]))

    def __call__(
        self, maps: Sequence[Float[Array, "b _h _w _d"]], key: OptionalKey = None
    ) -> LabelPredictions:
        return LabelPredictions(self.linear(self.norm(self.embed(maps))))
