"""CFPT: a pyramid whose levels exchange what they see in one step, with no top-down path.

Source: arXiv:2407.19696, and its released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from vadapt.errors import ConfigError
from vadapt.necks.cross_layer import CrossLayerPair
from vadapt.necks.simple_feature_pyramid import SimpleFeaturePyramid
from vadapt.nn.convolutions import ConvNorm
from vadapt.nn.linear import uniform
from vadapt.options import takes
from vadapt.partition import Head, mark

Map = Float[Array, "b _ _ _"]


class CFPT(nnx.Module):
    """Maps of one width, to each of which the others have been added by cross-layer attention.

    Each level is a 1x1 convolution, batch norm and ReLU of a map; where a map is named a second
    time, a 3x3 convolution of stride 2. Levels have half the sides of those before, rounded up.
    Where their sides are no multiples of the coarsest one's, attention in channels fills them up
    with zeros, which are cut off behind it.

    Args:
        widths: of the maps, fine to coarse.
        outputs: width of all levels.
        levels: numbers of the maps that they read. The published (-3, -2, -1, -1) has strides 8,
            16, 32, 64 of a ResNet's maps; (0, 1, 2, 3) keeps those of four maps.
        extra: levels made after these, each by a 3x3 convolution of stride 2 of the one before.
        pairs: attention in channels and in space, as often; a shortcut spans each pair.
        alpha, beta: `channel_attention`'s and `spatial_attention`'s overlap, odd.
        num_heads, reduction, mlp_ratio, bilinear: see `cross_layer`.
        fixed_statistics: batch norms go by the stored statistics, in training too.
        pyramid: maps have one stride, as a plain transformer's. The last of them is first made four
            of 4, 2, 1 and half its sides, see `SimpleFeaturePyramid`.

    Raises:
        ConfigError: levels of maps that are not there, or that are named more than twice.
    """

    def __init__(
        self,
        widths: Sequence[int],
        outputs: int = 256,
        *,
        levels: Sequence[int] = (-3, -2, -1, -1),
        extra: int = 1,
        pairs: int = 1,
        alpha: int = 1,
        beta: int = 1,
        num_heads: int = 4,
        reduction: int = 4,
        mlp_ratio: float = 2.0,
        bilinear: bool = False,
        fixed_statistics: bool = False,
        pyramid: bool = False,
        rngs: nnx.Rngs,
    ):
        self.pyramid = (
            SimpleFeaturePyramid(widths[-1], outputs, top=0, round_up=True, rngs=rngs)
            if pyramid
            else None
        )
        if self.pyramid is not None:
            widths = (outputs,) * len(self.pyramid.levels)
        self.read = _numbers(levels, len(widths))

        def conv(inputs: int, kernel: int) -> ConvNorm:
            init = uniform((inputs * kernel**2) ** -0.5)
            return ConvNorm(
                inputs,
                outputs,
                kernel,
                stride=1 if kernel == 1 else 2,
                kernel_init=init,
                fixed_statistics=fixed_statistics,
                rngs=rngs,
            )

        again = [number in self.read[:i] for i, number in enumerate(self.read)]
        self.inputs = nnx.List(
            [conv(widths[n], 3 if twice else 1) for n, twice in zip(self.read, again, strict=True)]
        )
        options: dict[str, Any] = {
            "num_heads": num_heads,
            "reduction": reduction,
            "mlp_ratio": mlp_ratio,
            "bilinear": bilinear,
        }
        made = [
            CrossLayerPair(outputs, len(self.read), alpha=alpha, beta=beta, rngs=rngs, **options)
            for _ in range(pairs)
        ]
        self.pairs = nnx.List(made)
        self.extra = nnx.List([conv(outputs, 3) for _ in range(extra)])
        mark(self, Head)

    def __call__(self, maps: Sequence[Map]) -> tuple[Map, ...]:
        if self.pyramid is not None:
            maps = self.pyramid(maps)
        found = tuple(
            conv(maps[number]) for conv, number in zip(self.inputs, self.read, strict=True)
        )
        for pair in self.pairs:
            found = pair(found)
        for conv in self.extra:
            found = (*found, conv(found[-1]))
        return found


def _numbers(levels: Sequence[int], maps: int) -> tuple[int, ...]:
    """Numbers of maps, counted from the first."""
    found = tuple(level + maps if level < 0 else level for level in levels)
    if any(not 0 <= number < maps or found.count(number) > 2 for number in found):
        raise ConfigError(
            f"levels {tuple(levels)} of {maps} maps: name each of them at most twice; negative "
            "numbers count from the last"
        )
    return found


@takes(CFPT)
def cfpt(
    widths: Sequence[int], *, outputs: int = 256, rngs: nnx.Rngs, **options: Any
) -> tuple[CFPT, tuple[int, ...]]:
    """Levels that attend to each other in channels and space. Source: CFPT, arXiv:2407.19696."""
    neck = CFPT(widths, outputs, **options, rngs=rngs)
    return neck, (outputs,) * (len(neck.inputs) + len(neck.extra))
