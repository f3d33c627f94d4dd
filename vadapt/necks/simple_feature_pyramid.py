"""Maps of several strides from the last map of a plain transformer.

Source: ViTDet, arXiv:2203.16527.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from vadapt.nn.activations import gelu_exact
from vadapt.nn.linear import uniform
from vadapt.nn.norms import LayerNorm
from vadapt.options import takes
from vadapt.partition import Head, mark

Map = Float[Array, "b _ _ _"]
MIDDLE = 4  # the level that keeps the map's stride: of patches of 16, log2 of it


class NormedConv(nnx.Module):
    """A convolution without a bias, and a norm of each place."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (kernel, kernel),
            use_bias=False,
            kernel_init=uniform((inputs * kernel**2) ** -0.5),
            rngs=rngs,
        )
        self.norm = LayerNorm(outputs, epsilon=1e-6)

    def __call__(self, x: Map) -> Map:
        return self.norm(self.conv(x))


class Level(nnx.Module):
    """A map grown by learned 2x2 steps, left, or pooled; then two convolutions with norms.

    Each step halves the width. Two are a norm and a GELU apart.
    """

    def __init__(
        self, width: int, outputs: int, doublings: int, *, round_up: bool = False, rngs: nnx.Rngs
    ):
        self.doublings, self.round_up = doublings, round_up
        widths = [width // 2**i for i in range(max(doublings, 0) + 1)]

        def double(inputs: int, outputs: int) -> nnx.ConvTranspose:
            init = uniform((4 * outputs) ** -0.5)
            return nnx.ConvTranspose(
                inputs,
                outputs,
                (2, 2),
                strides=(2, 2),
                padding="VALID",
                transpose_kernel=True,
                kernel_init=init,
                bias_init=init,
                rngs=rngs,
            )

        self.grow = nnx.List([double(*pair) for pair in itertools.pairwise(widths)])
        self.norms = nnx.List([LayerNorm(inner, epsilon=1e-6) for inner in widths[1:-1]])
        self.lateral = NormedConv(widths[-1], outputs, 1, rngs=rngs)
        self.output = NormedConv(outputs, outputs, 3, rngs=rngs)

    def __call__(self, x: Map) -> Map:
        for i, step in enumerate(self.grow):
            x = step(x if i == 0 else gelu_exact(self.norms[i - 1](x)))
        if self.doublings < 0:
            side = 2**-self.doublings
            padding = "SAME" if self.round_up else "VALID"
            x = nnx.max_pool(x, window_shape=(side, side), strides=(side, side), padding=padding)
        return self.output(self.lateral(x))


class SimpleFeaturePyramid(nnx.Module):
    """Levels of one width from one map.

    Args:
        doublings: of the map's sides, by level: (2, 1, 0, -1) takes stride 16 to 4, 8, 16, 32.
        top: levels made after these, each of every second place of the one before.
        round_up: where a side is odd, half of it is rounded up; published, down.
    """

    def __init__(
        self,
        width: int,
        outputs: int = 256,
        *,
        doublings: Sequence[int] = (2, 1, 0, -1),
        top: int = 1,
        round_up: bool = False,
        rngs: nnx.Rngs,
    ):
        self.top = top
        self.levels = nnx.Dict(
            {
                f"p{MIDDLE - number}": Level(width, outputs, number, round_up=round_up, rngs=rngs)
                for number in doublings
            }
        )
        mark(self, Head)

    def __call__(self, maps: Sequence[Map]) -> tuple[Map, ...]:
        """Levels of the last of the maps."""
        found = tuple(level(maps[-1]) for level in self.levels.values())
        for _ in range(self.top):
            found = (*found, found[-1][:, ::2, ::2])
        return found


@takes(SimpleFeaturePyramid)
def simple_feature_pyramid(
    widths: Sequence[int], *, outputs: int = 256, rngs: nnx.Rngs, **options: Any
) -> tuple[SimpleFeaturePyramid, tuple[int, ...]]:
    """Levels of several strides from the last map of one. Source: ViTDet, arXiv:2203.16527."""
    neck = SimpleFeaturePyramid(widths[-1], outputs, **options, rngs=rngs)
    return neck, (outputs,) * (len(neck.levels) + neck.top)
