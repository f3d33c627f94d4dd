"""Necks that train with the head: maps of strides 4, 8, 16, 32 out of four of stride 16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from vadapt.necks.pyramid import FACTORS, pyramid
from vadapt.nn.activations import gelu_exact
from vadapt.nn.convolutions import BatchNorm
from vadapt.nn.linear import uniform
from vadapt.nn.norms import LayerNorm
from vadapt.options import takes
from vadapt.partition import Head, mark

Map = Float[Array, "b _ _ _"]


class MapNorm(LayerNorm):
    """A norm over all numbers of a map, with a scale and a bias per channel; one group's norm."""

    axes = (-3, -2, -1)


class Deconvolutions(nnx.Module):
    """Four maps of one stride made a pyramid: grown by learned 2x2 steps, left, or pooled.

    Args:
        doublings: of each map's sides, fine to coarse: (2, 1, 0, -1) takes stride 16 to 4, 8, 16,
            32. Two are a batch norm and a GELU apart; negative ones take the largest of a cell.
        normed: every map is normed first (Rein's for CLIP); PAD's are not.

    Source: PAD, arXiv:2312.08192, released segmentation code; Rein, arXiv:2312.04265, released code
    for CLIP (not in the paper).
    """

    def __init__(
        self,
        width: int,
        *,
        doublings: Sequence[int] = (2, 1, 0, -1),
        normed: bool = True,
        rngs: nnx.Rngs,
    ):
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

        self.doublings = tuple(doublings)
        norms = [MapNorm(width, epsilon=1e-5) for _ in doublings] if normed else None
        self.norms = None if norms is None else nnx.List(norms)
        self.grow = nnx.List([nnx.List([double() for _ in range(n)]) for n in doublings])
        self.between = BatchNorm(width, rngs=rngs) if 2 in self.doublings else None
        mark(self, Head)

    def __call__(self, maps: Sequence[Map]) -> tuple[Map, ...]:
        if self.norms is not None:
            maps = [norm(x) for norm, x in zip(self.norms, maps, strict=True)]
        return tuple(self._sized(i, x) for i, x in enumerate(maps))

    def _sized(self, level: int, x: Map) -> Map:
        doublings = self.doublings[level]
        if doublings < 0:
            side = 2**-doublings
            return nnx.max_pool(x, window_shape=(side, side), strides=(side, side))
        for i, step in enumerate(self.grow[level]):
            x = step(x if i == 0 or self.between is None else gelu_exact(self.between(x)))
        return x


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


@takes(Deconvolutions)
def deconvolutions(
    widths: Sequence[int], *, rngs: nnx.Rngs, **options: Any
) -> tuple[Deconvolutions, tuple[int, ...]]:
    """Maps grown by learned 2x2 steps, left, or pooled. Source: PAD, arXiv:2312.08192."""
    return Deconvolutions(widths[0], **options, rngs=rngs), tuple(widths)


@takes(MultiLevelNeck)
def multi_level(
    widths: Sequence[int], *, outputs: int | None = None, rngs: nnx.Rngs, **options: Any
) -> tuple[MultiLevelNeck, tuple[int, ...]]:
    """Maps of four widths made one width, and resized. Source: mmsegmentation's MultiLevelNeck."""
    outputs = widths[0] if outputs is None else outputs
    return MultiLevelNeck(widths, outputs, **options, rngs=rngs), (outputs,) * len(widths)
