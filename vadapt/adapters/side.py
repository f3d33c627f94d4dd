"""Side tuning: a small network beside a frozen one, mixed with what that one gives.

Source: Side-Tuning, arXiv:1912.13503, with the network and the mixture that VPT's released code
(arXiv:2203.12119) compares with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vadapt.errors import ConfigError
from vadapt.nn.hooks import Hook, add_hook, check_place
from vadapt.nn.linear import uniform
from vadapt.nn.resize import average_pool
from vadapt.partition import Adapter, mark

# Side of the kernel, stride, padding, and whether a pooling follows: AlexNet's convolutions.
LAYERS = ((11, 4, 2, True), (5, 1, 2, True), (3, 1, 1, False), (3, 1, 1, False), (3, 1, 1, True))
CHANNELS = (64, 192, 384, 256, 256)
CELLS = 6  # a side of the grid that the last map is averaged over


class SideNetwork(nnx.Module):
    """AlexNet's convolutions, means over a grid of cells, and one linear layer.

    Args:
        width: of what it gives.
        channels: of the five convolutions.
        inputs: channels of images.
    """

    def __init__(
        self, width: int, *, channels: Sequence[int] = CHANNELS, inputs: int = 3, rngs: nnx.Rngs
    ):
        if len(channels) != len(LAYERS):
            raise ConfigError(f"side has {len(LAYERS)} convolutions, and channels {channels}")
        self.convs = nnx.List([])
        for (side, stride, padding, _), outputs in zip(LAYERS, channels, strict=True):
            init = uniform((inputs * side**2) ** -0.5)
            conv = nnx.Conv(
                inputs,
                outputs,
                (side, side),
                strides=stride,
                padding=padding,
                kernel_init=init,
                bias_init=init,
                rngs=rngs,
            )
            self.convs.append(conv)
            inputs = outputs
        init = uniform((inputs * CELLS**2) ** -0.5)
        self.linear = nnx.Linear(
            inputs * CELLS**2, width, kernel_init=init, bias_init=init, rngs=rngs
        )

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        x = images.astype(self.linear.kernel.dtype)
        for conv, (_, _, _, is_pooled) in zip(self.convs, LAYERS, strict=True):
            x = jax.nn.relu(conv(x))
            x = _pool(x) if is_pooled else x
        return self.linear(average_pool(x, CELLS).reshape(x.shape[0], -1))


def _pool(x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 d"]:
    """The largest of 3x3 places, every second one; of all places of a map that is smaller."""
    window = (min(3, x.shape[1]), min(3, x.shape[2]))
    return nnx.max_pool(x, window, strides=(2, 2))


class Side(Hook):
    """Mixes a side network's vector into every place that leaves: s * x + (1 - s) * side.

    The share s is the sigmoid of a learned number, which starts at 0. Whatever a head averages, or
    the class token, is thereby the same mixture.
    """

    def __init__(self, width: int, **options: Any):
        self.network = SideNetwork(width, **options)
        self.alpha = nnx.Param(jnp.zeros(()))
        mark(self, Adapter)

    def acts(self, number: int) -> bool:
        return False

    def start(self, images: Float[Array, "b h w c"]) -> Float[Array, "b d"]:
        return self.network(images)

    def leave(
        self, x: Float[Array, "b *n d"], state: Float[Array, "b d"]
    ) -> Float[Array, "b *n d"]:
        share = jax.nn.sigmoid(self.alpha[...].astype(x.dtype))
        beside = state.astype(x.dtype).reshape(x.shape[0], *[1] * (x.ndim - 2), x.shape[-1])
        return share * x + (1 - share) * jnp.broadcast_to(beside, x.shape)


def apply(model: Any, *, channels: Sequence[int] = CHANNELS, rngs: nnx.Rngs | None = None) -> Any:
    """Put a side network beside a model; the given model stays as it is.

    The network sees the images of the backbone, and its vector is mixed with what the last block
    (stage) gives, behind the norm. No gradient flows through the frozen blocks. The new model does
    not compute what the old one did.

    Args:
        model: a backbone of any kind, and images of any size.
        channels: of the side network's five convolutions; by default AlexNet's.

    Raises:
        ConfigError: another number of channels, or a model that is no backbone, or has a neck.

    >>> from vadapt.backbones.vit import vit
    >>> from vadapt.partition import count, split
    >>> model = nnx.eval_shape(lambda: apply(vit("base", rngs=nnx.Rngs(0))))
    >>> count(split(model).trainable) == 2_469_696 + (256 * 6 * 6 + 1) * 768 + 1
    True
    """
    check_place(model, "side")
    if getattr(model, "neck", None) is not None:
        raise ConfigError(
            f"side: what leaves this {type(model).__name__} has one width before its neck and "
            "another behind it; create it without one (neck=None)"
        )
    width = model.widths[-1] if hasattr(model, "stages") else model.width
    model, rngs = nnx.clone(model), rngs or nnx.Rngs(0)
    inputs = model.in_channels
    add_hook(model, "side", Side(width, channels=channels, inputs=inputs, rngs=rngs))
    return model
