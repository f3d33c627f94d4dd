"""Necks that train with the head: maps of strides 4, 8, 16, 32 out of four of stride 16."""

from __future__ import annotations

from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

from vadapt.backbones.convolutions import BatchNorm
from vadapt.backbones.layers import LayerNorm, gelu_exact, uniform
from vadapt.necks.pyramid import FACTORS, pyramid
from vadapt.partition import Head, mark

Map = Float[Array, "b _ _ _"]


class MapNorm(LayerNorm):
    """A norm over all numbers of a map, with a scale and a bias a channel; one group's norm."""

    axes = (-3, -2, -1)


class Deconvolutions(nnx.Module):
    """Rein's pyramid for CLIP: every map normed, then grown by learned 2x2 steps, or pooled.

    Source: Rein, arXiv:2312.04265, released code for CLIP (not in the paper).
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        init = uniform((4 * width) ** -0.5)

        def double() -> nnx.ConvTranspose:
            return nnx.ConvTranspose(
                width,
                width,
                (2, 2),
                strides=(2, 2),
                padding="VALID",
                transpose_kernel=True,
                kernel_init=init,
                bias_init=init,
                rngs=rngs,
            )

        self.norms = nnx.List([MapNorm(width, epsilon=1e-5) for _ in range(4)])
        self.double = double()
        self.quadruple = nnx.List([double(), double()])
        self.between = BatchNorm(width, rngs=rngs)  # the two
        mark(self, Head)

    def __call__(self, maps: Sequence[Map]) -> tuple[Map, Map, Map, Map]:
        quarter, half, same, twice = (norm(x) for norm, x in zip(self.norms, maps, strict=True))
        first, second = self.quadruple
        quarter = second(gelu_exact(self.between(first(quarter))))
        return quarter, self.double(half), same, nnx.max_pool(twice, (2, 2), strides=(2, 2))


class MultiLevelNeck(nnx.Module):
    """A 1x1 convolution a map, resizing by its factor, and a 3x3 convolution.

    Source: mmsegmentation's neck of this name, which Rein's frozen baseline of CLIP has.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: int,
        *,
        factors: Sequence[float] = FACTORS,
        rngs: nnx.Rngs,
    ):
        def conv(inputs: int, side: int) -> nnx.Conv:
            init = nnx.initializers.xavier_uniform()
            return nnx.Conv(inputs, outputs, (side, side), kernel_init=init, rngs=rngs)

        self.factors = tuple(factors)
        self.laterals = nnx.List([conv(width, 1) for width in inputs])
        self.outputs = nnx.List([conv(outputs, 3) for _ in inputs])
        mark(self, Head)

    def __call__(self, maps: Sequence[Map]) -> tuple[Map, ...]:
        laterals = [conv(x) for conv, x in zip(self.laterals, maps, strict=True)]
        resized = pyramid(laterals, self.factors)
        return tuple(conv(x) for conv, x in zip(self.outputs, resized, strict=True))
