"""Residual networks, with the stems and dilations that dense prediction uses."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from vadapt.backbones.named import without_positions
from vadapt.backbones.staged import Staged
from vadapt.errors import ConfigError, nearest
from vadapt.nn.convolutions import ConvNorm
from vadapt.nn.drop import OptionalKey

# Blocks a stage; the first two have blocks of two 3x3 convolutions, the others bottlenecks.
DEPTHS: dict[int, tuple[int, ...]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
EXPANSION = 4  # of a bottleneck


class ResidualBlock(nnx.Module):
    """relu(shortcut(x) + layers(x)); the shortcut is a 1x1 convolution where the shape changes.

    Args:
        bottleneck: 1x1, 3x3 and 1x1 convolutions; else two 3x3.
        stride, dilation: of a bottleneck's 3x3 convolution, or of the first of two.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bottleneck: bool,
        stride: int = 1,
        dilation: int = 1,
        rngs: nnx.Rngs,
    ):
        width = outputs // EXPANSION if bottleneck else outputs
        first = ConvNorm(
            width if bottleneck else inputs, width, 3, stride=stride, dilation=dilation, rngs=rngs
        )
        last = ConvNorm(width, outputs, 1 if bottleneck else 3, activation=False, rngs=rngs)
        before = [ConvNorm(inputs, width, 1, rngs=rngs)] if bottleneck else []
        self.layers = nnx.List([*before, first, last])
        self.shortcut = (
            ConvNorm(inputs, outputs, 1, stride=stride, activation=False, rngs=rngs)
            if stride > 1 or inputs != outputs
            else None
        )

    def __call__(
        self, x: Float[Array, "b h w c"], key: OptionalKey = None
    ) -> Float[Array, "b h2 w2 d"]:
        """`key` is what blocks of every kind are called with; nothing here is random."""
        y = x
        for layer in self.layers:
            y = layer(y)
        return jax.nn.relu((x if self.shortcut is None else self.shortcut(x)) + y)


class ResNet(Staged):
    """A residual network with the stride on the 3x3 convolution (V1.5), and its V1c form.

    Every norm goes by the stored statistics (see `convolutions.BatchNorm`); `features` has no
    output norms.

    Args:
        depth: 18, 34, 50, 101 or 152.
        base_width: of the first stage's 3x3 convolutions; each later stage doubles it.
        stem_width: channels after the stem; None for as many as `base_width`.
        deep_stem: three 3x3 convolutions, the first two half as wide, in place of one 7x7 (V1c).
        strides, dilations: of every stage; dense prediction takes (1, 2, 1, 1), (1, 1, 2, 4). The
            attribute `strides` is against the image, 4 times as much and accumulated.
        contract_dilation: the first block of a dilated stage has half the dilation.

    Raises:
        ConfigError: another depth, or settings not of four stages.

    Source: arXiv:1512.03385; the stem arXiv:1812.01187; dilations arXiv:1606.00915.

    >>> dense = {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4), "contract_dilation": True}
    >>> model = nnx.eval_shape(lambda: ResNet(50, deep_stem=True, **dense, rngs=nnx.Rngs(0)))
    >>> model.widths, model.strides
    ((256, 512, 1024, 2048), (4, 8, 8, 8))
    """

    def __init__(
        self,
        depth: int,
        *,
        base_width: int = 64,
        stem_width: int | None = None,
        deep_stem: bool = False,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        contract_dilation: bool = False,
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ):
        if depth not in DEPTHS:
            raise ConfigError(
                f"no ResNet has depth {depth}; {nearest(str(depth), map(str, DEPTHS))}"
            )
        numbers = DEPTHS[depth]
        if not len(strides) == len(dilations) == len(numbers):
            raise ConfigError(
                f"strides {tuple(strides)} and dilations {tuple(dilations)} must have one number "
                f"for each of {len(numbers)} stages"
            )
        bottleneck = depth >= 50
        width = base_width * (EXPANSION if bottleneck else 1)
        self.widths = tuple(width * 2**i for i in range(len(numbers)))
        self.in_channels = in_channels
        self.strides = tuple(4 * math.prod(strides[: i + 1]) for i in range(len(numbers)))
        self.stem_width = stem_width or base_width
        self.stem = nnx.List(_stem(in_channels, self.stem_width, deep_stem, rngs))
        inputs = (self.stem_width, *self.widths)

        def blocks(i: int) -> list[ResidualBlock]:
            first = max(dilations[i] // 2, 1) if contract_dilation else dilations[i]
            block = functools.partial(ResidualBlock, bottleneck=bottleneck, rngs=rngs)
            outputs, rest = self.widths[i], range(1, numbers[i])
            return [
                block(inputs[i], outputs, stride=strides[i], dilation=first),
                *(block(outputs, outputs, dilation=dilations[i]) for _ in rest),
            ]

        self.stages = nnx.List([nnx.List(blocks(i)) for i in range(len(numbers))])

    def enter(self, x: Float[Array, "b h w c"], stage: int) -> Float[Array, "b h2 w2 d"]:
        if stage:
            return x
        # The compute type is that of the weights, so that a step can cast both trees and be done.
        x = x.astype(self.stem[0].conv.kernel.dtype)
        for layer in self.stem:
            x = layer(x)
        around: Any = ((1, 1), (1, 1))  # of minus infinity
        return nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=around)


def _stem(inputs: int, width: int, deep: bool, rngs: nnx.Rngs) -> list[ConvNorm]:
    """The convolutions before the max-pool, of stride 2 together."""
    if not deep:
        return [ConvNorm(inputs, width, 7, stride=2, rngs=rngs)]
    return [
        ConvNorm(inputs, width // 2, 3, stride=2, rngs=rngs),
        ConvNorm(width // 2, width // 2, 3, rngs=rngs),
        ConvNorm(width // 2, width, 3, rngs=rngs),
    ]


NAMED = {
    **{
        f"resnet{depth}": without_positions(
            functools.partial(ResNet, depth), "ResNet, arXiv:1512.03385"
        )
        for depth in (18, 34, 50, 101)
    },
    **{
        f"resnet{depth}_v1c": without_positions(
            functools.partial(ResNet, depth, deep_stem=True), "ResNet-C, arXiv:1812.01187"
        )
        for depth in (50, 101)
    },
}
