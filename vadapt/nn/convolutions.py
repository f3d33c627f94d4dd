"""Layers that convolutional networks and heads share: batch norm, and a convolution with it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vadapt.partition import Statistic

FAN_OUT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
FAN_IN = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


class BatchNorm(nnx.BatchNorm):
    """Batch norm over the last axis, in float32, by the stored statistics.

    With `use_running_average` set to False (an attribute; a module's `train()` and `eval()` set it
    everywhere inside) it takes those of the batch, which is the global one where the batch is
    sharded, and moves the stored ones a tenth towards them; towards the population's variance as
    the n places of the batch estimate it, n / (n - 1) times their own.

    Args:
        fixed_statistics: by the stored statistics whatever `use_running_average` is set to.
    """

    def __init__(self, width: int, *, fixed_statistics: bool = False, rngs: nnx.Rngs):
        super().__init__(
            width,
            use_running_average=True,
            momentum=0.9,
            epsilon=1e-5,
            dtype=jnp.float32,
            use_fast_variance=False,
            rngs=rngs,
        )
        self.fixed_statistics = fixed_statistics
        self.mean, self.var = Statistic(self.mean[...]), Statistic(self.var[...])

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        kept = self.momentum * self.var[...]
        stored = self.fixed_statistics or self.use_running_average
        y = super().__call__(x, use_running_average=stored)
        if not stored:
            places = x.size // x.shape[-1]
            self.var[...] = kept + (self.var[...] - kept) * (places / max(places - 1, 1))
        return y.astype(x.dtype)


def convolve_images(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "p q c d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b h2 w2 d"]:
    """`jax.lax.conv_general_dilated` for images, whose channels are few.

    On TPUs it is a product of patches. As a convolution, XLA lays the images of a chip along the
    lanes, 128 for eight: of 448 px, 205 MB in place of 10.
    """
    plain = functools.partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options
    )
    tpu = functools.partial(product_of_patches, strides=strides, padding=padding)

    def either(x: Array, kernel: Array) -> Array:
        return jax.lax.platform_dependent(x, kernel, tpu=tpu, default=plain)

    return jax.checkpoint(either)(x, kernel)


def product_of_patches(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "p q c d"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> Float[Array, "b h2 w2 d"]:
    """A convolution without dilation; places lie along the lanes, patches across."""
    sides = kernel.shape[:2]
    x = jnp.pad(jnp.moveaxis(x, 3, 1), ((0, 0), (0, 0), *padding))
    rows, columns = (
        [slice(i, i + size - side + 1, stride) for i in range(side)]
        for size, side, stride in zip(x.shape[2:], sides, strides, strict=True)
    )
    parts = [x[:, :, row, column] for row, column in itertools.product(rows, columns)]
    patches = jnp.concatenate(parts, axis=1)
    return jnp.einsum("bphw,pd->bhwd", patches, kernel.reshape(-1, kernel.shape[3]))


class ConvNorm(nnx.Module):
    """A convolution, batch norm, and ReLU if asked; odd sizes are rounded up.

    The padding is (kernel - 1) / 2 * dilation on every side. The convolution's own bias, which the
    norm makes useless, is there for files that have it. `fixed_statistics` are the norm's.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        activation: bool = True,
        use_bias: bool = False,
        kernel_init: Callable[..., Any] = FAN_OUT,
        fixed_statistics: bool = False,
        rngs: nnx.Rngs,
    ):
        padding = kernel // 2 * dilation
        self.activation = activation
        of_images = inputs <= 4 and kernel <= 3 and dilation == 1
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (kernel, kernel),
            strides=stride,
            padding=((padding, padding),) * 2,
            kernel_dilation=dilation,
            use_bias=use_bias,
            kernel_init=kernel_init,
            conv_general_dilated=convolve_images if of_images else jax.lax.conv_general_dilated,
            rngs=rngs,
        )
        self.norm = BatchNorm(outputs, fixed_statistics=fixed_statistics, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        y = self.norm(self.conv(x))
        return jax.nn.relu(y) if self.activation else y
