"""Pro-tuning: small convolutional prompt blocks behind the stages of a frozen network.

Source: arXiv:2207.14381. No code was released: this is the paper's description, with options that
an independent form of it has.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vadapt.errors import ConfigError
from vadapt.nn.hooks import Hook, add_hook, check_place
from vadapt.nn.tokens import Tokens
from vadapt.nn.trunk import block_numbers
from vadapt.partition import Adapter, mark

RATIO = 16  # of channels in the squeeze


class PromptBlock(nnx.Module):
    """A 1x1, a depthwise and a 1x1 convolution of a map, with ReLU between them.

    Args:
        kernel: side of the depthwise convolution.
        groups: of the 1x1 convolutions at both ends.
        se: a gate per channel from the whole map behind the third convolution, and a fourth, 1x1.
        zero_init_scale: a learned number that starts at 0 scales the result.
    """

    def __init__(
        self,
        width: int,
        *,
        kernel: int = 5,
        groups: int = 1,
        se: bool = False,
        zero_init_scale: bool = True,
        rngs: nnx.Rngs,
    ):
        if groups < 1 or width % groups:
            raise ConfigError(
                f"pro_tuning: {width} channels are no multiple of groups={groups}; choose a divisor"
            )

        def conv(side: int, groups: int) -> nnx.Conv:
            return nnx.Conv(width, width, (side, side), feature_group_count=groups, rngs=rngs)

        ends = [conv(1, groups), conv(kernel, width), conv(1, 1 if se else groups)]
        self.convs = nnx.List(ends)
        hidden = max(width // RATIO, 1)
        self.squeeze = nnx.Linear(width, hidden, rngs=rngs) if se else None
        self.excite = nnx.Linear(hidden, width, rngs=rngs) if se else None
        self.last = conv(1, groups) if se else None
        self.scale = nnx.Param(jnp.zeros((1,))) if zero_init_scale else None
        mark(self, Adapter)

    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        first, depthwise, mix = self.convs
        y = mix(jax.nn.relu(depthwise(jax.nn.relu(first(x)))))
        if self.squeeze is not None and self.excite is not None and self.last is not None:
            means = y.mean(axis=(1, 2), keepdims=True)
            gate = jax.nn.sigmoid(self.excite(jax.nn.relu(self.squeeze(means))))
            y = self.last(y * jnp.broadcast_to(gate, y.shape))
        if self.scale is None:
            return y
        return y * jnp.broadcast_to(self.scale[...].astype(y.dtype), y.shape)


class ProTuning(Hook):
    """Adds what a prompt block makes of the patches behind a block; special tokens stay.

    Args:
        layers: numbers of the blocks of the trunk that one stands behind.
        widths: of what these blocks give.
        options: see `PromptBlock`.
    """

    def __init__(self, layers: Sequence[int], widths: Sequence[int], **options: Any):
        self.layers = tuple(layers)
        self.prompts = nnx.List([PromptBlock(width, **options) for width in widths])

    def acts(self, number: int) -> bool:
        return number in self.layers

    def after(self, number: int, x: Tokens, state: Any) -> tuple[Tokens, Any]:
        prompt = self.prompts[self.layers.index(number)](x.map)
        return x.with_patches(x.patches + prompt.reshape(x.patches.shape)), state


def apply(
    model: Any,
    *,
    layers: Sequence[int] | None = None,
    kernel: int = 5,
    groups: int = 1,
    se: bool = False,
    zero_init_scale: bool = True,
    rngs: nnx.Rngs | None = None,
) -> Any:
    """Put prompt blocks behind stages, or blocks, of a model; the given model stays as it is.

    With `zero_init_scale` the new model computes what the old one did until it is trained.

    Args:
        model: a backbone. Patches of a transformer are taken as a map.
        layers: the stages, of a backbone that has none the blocks, that one stands behind; negative
            from the end, None for all.
        kernel, groups, se, zero_init_scale: see `PromptBlock`.

    Raises:
        ConfigError: the model has no such blocks, or channels are no multiple of `groups`.

    >>> from vadapt.backbones.vit import vit
    >>> from vadapt.partition import count, split
    >>> model = apply(vit("micro", image_size=64, rngs=nnx.Rngs(0)), layers=[1, 3])
    >>> count(split(model).trainable) == 2 * (2 * (96 * 96 + 96) + 25 * 96 + 96 + 1)
    True
    """
    check_place(model, "pro_tuning")
    model, rngs = nnx.clone(model), rngs or nnx.Rngs(0)
    options = {"kernel": kernel, "groups": groups, "se": se, "zero_init_scale": zero_init_scale}
    chosen = range(model.depth) if layers is None else layers
    chosen = sorted({*block_numbers(tuple(chosen), model.depth, model.counts)})
    if hasattr(model, "stages"):
        ends = list(itertools.accumulate(map(len, model.stages)))
        numbers, widths = [ends[i] - 1 for i in chosen], [model.widths[i] for i in chosen]
    else:
        numbers, widths = chosen, [model.width] * len(chosen)
    add_hook(model, "pro_tuning", ProTuning(numbers, widths, **options, rngs=rngs))
    return model
