"""SSF: a learned scale and shift per channel behind every layer, which fold into the layer.

Source: arXiv:2210.08823; places and starts as in its released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vadapt.adapters import surgery
from vadapt.adapters.changed import Changed, change
from vadapt.errors import ConfigError
from vadapt.nn.sites import Site
from vadapt.partition import Adapter

# All but what stands between stages, as the released models count; the paper's text has that, too.
TARGETS = (r"(?!downsamples/[1-9]|merges/).*",)


class Scaled(Changed):
    """A layer whose output is scaled and shifted per channel: scale * layer(x) + shift.

    Args:
        scale, shift: one number for each channel of what comes out.
    """

    method, adds = "ssf", ("ssf_scale", "ssf_shift")

    def __init__(self, layer: Any, scale: Float[Array, " c"], shift: Float[Array, " c"]):
        super().__init__(layer)
        self.ssf_scale, self.ssf_shift = Adapter(scale), Adapter(shift)

    def __call__(self, inputs: Float[Array, "*b"], *args: Any, **kwargs: Any) -> Array:
        frozen: Any = super().__call__
        y = frozen(inputs, *args, **kwargs)
        scale, shift = (
            jnp.broadcast_to(row[...].astype(y.dtype), y.shape)
            for row in (self.ssf_scale, self.ssf_shift)
        )
        return y * scale + shift

    def folded(self) -> Any:
        """A plain layer that computes the same; it has a bias, also where the frozen one has none.

        That of a convolution before a batch norm is what the norm's mean would be less by.
        """
        layer, name = self.plain_layer(), _weight_of(self)
        weight = getattr(layer, name)
        scale, shift = (row[...].astype(jnp.float32) for row in (self.ssf_scale, self.ssf_shift))
        shape = [1] * weight.ndim
        shape[_channels(self)] = -1
        changed = weight[...].astype(jnp.float32) * jnp.broadcast_to(
            scale.reshape(shape), weight.shape
        )
        setattr(layer, name, nnx.Param(changed.astype(weight.dtype)))
        if layer.bias is None:
            layer.use_bias, bias = True, shift
        else:
            bias = layer.bias[...].astype(jnp.float32)
            bias = bias * jnp.broadcast_to(scale, bias.shape) + jnp.broadcast_to(shift, bias.shape)
        layer.bias = nnx.Param(bias.astype(weight.dtype))
        return layer


def apply(
    model: Any,
    *,
    targets: Sequence[str] = TARGETS,
    std: float = 0.02,
    rngs: nnx.Rngs | None = None,
) -> Any:
    """Scale and shift what layers of a frozen model give; the given model stays as it is.

    `vadapt.fold` puts all of it into the frozen weights, exactly, and gives a plain model back.

    Args:
        model: a backbone, or any NNX module with linear layers, convolutions and norms.
        targets: which of them (see `surgery.replace`): by default, as in the released code, patch
            embedding or stem, norms, projections, MLPs, convolutions, the last norm. ".*" also
            has the layers between stages.
        std: of the normal distribution from which scales (around 1) and shifts (around 0) are
            drawn, so that the new model is not quite the old one; 0 starts with the old one.

    Raises:
        ConfigError: a target that is nowhere, or a layer that is another method's already.

    >>> from vadapt.backbones.vit import vit
    >>> from vadapt.partition import count, split
    >>> model = apply(vit("micro", image_size=64, rngs=nnx.Rngs(0)))
    >>> count(split(model).trainable) == 6 * 22 * 96 + 4 * 96
    True
    """
    if std < 0:
        raise ConfigError(f"ssf draws from a normal distribution of std={std}; give 0 or more")
    rngs = rngs or nnx.Rngs(0)

    def make(site: Site, _: tuple[int, ...] | None) -> Any:
        layer: Any = site.module
        size = (getattr(layer, _weight_of(layer)).shape[_channels(layer)],)
        scale, shift = (std * jax.random.normal(rngs.params(), size) for _ in range(2))
        return change(Scaled, layer, 1.0 + scale, shift)

    kinds = ("linear", "conv", "norm")
    return surgery.replace(model, targets, make, kinds=kinds, method="ssf", whole=True)


def _weight_of(layer: Any) -> str:
    """The attribute that the scale multiplies when it is folded.

    Raises:
        ConfigError: a norm without a scale or without a bias.
    """
    if hasattr(layer, "kernel"):
        return "kernel"
    if getattr(layer, "scale", None) is None or getattr(layer, "bias", None) is None:
        raise ConfigError(
            f"ssf folds into scale and bias, and a {type(layer).__name__} here has not both; leave "
            "this layer out of the targets"
        )
    return "scale"


def _channels(layer: Any) -> int:
    """The axis of the weight that is the last of what comes out."""
    if not isinstance(layer, nnx.Einsum):
        return -1
    _, kernel, y = layer.einsum_str.replace(" ", "").replace("->", ",").split(",")
    if y[-1] not in kernel:
        raise ConfigError(
            f"ssf scales the last axis of outputs, which {layer.einsum_str!r} has from its inputs; "
            "leave this layer out of the targets"
        )
    return kernel.index(y[-1])
