"""Feature pyramids with a top-down path.

Source: FPN, arXiv:1612.03144; the extra levels RetinaNet, arXiv:1708.02002.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vadapt.errors import ConfigError
from vadapt.options import takes
from vadapt.partition import Head, mark

Map = Float[Array, "b _ _ _"]
SOURCES = ("input", "output", "pool")


class FPN(nnx.Module):
    """Each map by a 1x1 convolution, what is coarser added to it, and a 3x3 convolution.

    Args:
        widths: of the maps, fine to coarse.
        outputs: width of all levels.
        start: number of the first map that is read; 1 leaves out a ResNet's stride of 4.
        extra: levels made after these, each of the one before; RetinaNet has 2, Faster R-CNN 1.
        extra_of: what the first of them is made of: the last "input" (C5) or the last "output"
            (P5), each by a 3x3 convolution of stride 2, or "pool", every second place of the last
            output, which has no weights.
        relu: between one extra convolution and the next, as RetinaNet's paper has it;
            mmdetection's has none.

    Raises:
        ConfigError: no map is left, or another `extra_of`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        outputs: int = 256,
        *,
        start: int = 0,
        extra: int = 0,
        extra_of: str = "input",
        relu: bool = False,
        rngs: nnx.Rngs,
    ):
        if extra_of not in SOURCES or not 0 <= start < len(widths):
            raise ConfigError(
                f"no pyramid from map {start} of {len(widths)} with extra levels of {extra_of!r}; "
                f"allowed: {', '.join(SOURCES)}"
            )
        self.start, self.num_extra, self.extra_of, self.relu = start, extra, extra_of, relu
        widths = widths[start:]

        def conv(inputs: int, kernel: int, stride: int = 1) -> nnx.Conv:
            return nnx.Conv(
                inputs,
                outputs,
                (kernel, kernel),
                strides=stride,
                padding=((kernel // 2, kernel // 2),) * 2,
                kernel_init=nnx.initializers.xavier_uniform(),
                rngs=rngs,
            )

        first = widths[-1] if extra_of == "input" else outputs
        inputs = [first, *[outputs] * (extra - 1)] if extra and extra_of != "pool" else []
        self.laterals = nnx.List([conv(width, 1) for width in widths])
        made = [conv(outputs, 3) for _ in widths] + [conv(width, 3, 2) for width in inputs]
        self.outputs = nnx.List(made)
        mark(self, Head)

    def __call__(self, maps: Sequence[Map]) -> tuple[Map, ...]:
        maps = maps[self.start :]
        number = len(self.laterals)
        levels = [conv(x) for conv, x in zip(self.laterals, maps, strict=True)]
        for i in reversed(range(number - 1)):
            levels[i] = levels[i] + repeat_nearest(levels[i + 1], levels[i].shape[1:3])
        convs = list(self.outputs)
        found = [conv(x) for conv, x in zip(convs[:number], levels, strict=True)]
        if self.extra_of == "pool":
            for _ in range(self.num_extra):
                found.append(found[-1][:, ::2, ::2])
            return tuple(found)
        x = maps[-1] if self.extra_of == "input" else found[-1]
        for i, conv in enumerate(convs[number:]):
            x = conv(jax.nn.relu(x) if self.relu and i else x)
            found.append(x)
        return tuple(found)


def repeat_nearest(x: Map, size: Sequence[int]) -> Map:
    """A map of this size, each of whose places is the one at its share of the side of `x`."""
    for axis, new in enumerate(size, start=1):
        old = x.shape[axis]
        if new % old:
            x = jnp.take(x, np.arange(new) * old // new, axis=axis)
        else:
            x = jnp.repeat(x, new // old, axis=axis)
    return x


@takes(FPN)
def fpn(
    widths: Sequence[int], *, outputs: int = 256, rngs: nnx.Rngs, **options: Any
) -> tuple[FPN, tuple[int, ...]]:
    """Levels with what is coarser added from the top down. Source: FPN, arXiv:1612.03144."""
    neck = FPN(widths, outputs, **options, rngs=rngs)
    return neck, (outputs,) * (len(neck.laterals) + neck.num_extra)
