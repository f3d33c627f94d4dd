"""ConvNeXt: a convolutional network built the way transformers are."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from flax import nnx
from jaxtyping import Array, Float

from vadapt.backbones.named import without_positions
from vadapt.backbones.staged import Staged
from vadapt.errors import ConfigError, nearest
from vadapt.nn.activations import gelu_exact
from vadapt.nn.drop import OptionalKey, drop_path
from vadapt.nn.norms import LayerNorm, LayerScale
from vadapt.options import takes

# The published sizes: blocks and channels a stage.
VARIANTS: dict[str, dict[str, tuple[int, ...]]] = {
    "tiny": {"depths": (3, 3, 9, 3), "widths": (96, 192, 384, 768)},
    "small": {"depths": (3, 3, 27, 3), "widths": (96, 192, 384, 768)},
    "base": {"depths": (3, 3, 27, 3), "widths": (128, 256, 512, 1024)},
    "large": {"depths": (3, 3, 27, 3), "widths": (192, 384, 768, 1536)},
}
EPSILON = 1e-6  # of every norm
SMALL = nnx.initializers.truncated_normal(0.02)


class ConvNeXtBlock(nnx.Module):
    """x + scale(fc2(gelu(fc1(norm(dwconv(x)))))), with a 7x7 depthwise convolution."""

    ROLES: ClassVar[dict[str, tuple[str, ...]]] = {"fc1": ("mlp_in",), "fc2": ("mlp_out",)}

    def __init__(
        self, width: int, *, layer_scale: float, drop_path_rate: float = 0.0, rngs: nnx.Rngs
    ):
        self.dwconv = nnx.Conv(
            width,
            width,
            (7, 7),
            padding=((3, 3), (3, 3)),
            feature_group_count=width,
            kernel_init=SMALL,
            rngs=rngs,
        )
        self.norm = LayerNorm(width, epsilon=EPSILON)
        self.fc1 = nnx.Linear(width, 4 * width, kernel_init=SMALL, rngs=rngs)
        self.fc2 = nnx.Linear(4 * width, width, kernel_init=SMALL, rngs=rngs)
        self.scale = LayerScale(width, layer_scale)
        self.drop_path_rate = drop_path_rate

    def __call__(
        self, x: Float[Array, "b h w d"], key: OptionalKey = None
    ) -> Float[Array, "b h w d"]:
        y = self.fc2(gelu_exact(self.fc1(self.norm(self.dwconv(x)))))
        return x + drop_path(self.scale(y), self.drop_path_rate, key)


class Downsample(nnx.Module):
    """A norm and a convolution with its own stride; in the stem the norm comes second.

    Rows and columns that do not fill a last step are left out.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, *, stem: bool, rngs: nnx.Rngs):
        self.stem = stem
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (stride, stride),
            strides=stride,
            padding="VALID",
            kernel_init=SMALL,
            rngs=rngs,
        )
        self.norm = LayerNorm(outputs if stem else inputs, epsilon=EPSILON)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        return self.norm(self.conv(x)) if self.stem else self.conv(self.norm(x))


class ConvNeXt(Staged):
    """ConvNeXt (arXiv:2201.03545): four stages of maps, each entered through a `Downsample`.

    Args:
        depths, widths: blocks and channels of every stage.
        normed: the stages whose map leaves through a norm. Classifiers have that of the last
            stage (it follows their pooling, and is applied to the map here); dense prediction has
            all, and blocks never see them.
        layer_scale: initial value of a learned factor per channel on every block's branch.
        drop_path_rate: of the last block; grows linearly from 0 at the first.

    Raises:
        ConfigError: settings of unequal numbers of stages, or a norm for a stage there is not.

    >>> import jax
    >>> model = ConvNeXt(depths=(1, 1), widths=(4, 8), normed=(0, 1), rngs=nnx.Rngs(0))
    >>> model.widths, model.strides
    ((4, 8), (4, 8))
    >>> model.features(jax.numpy.zeros((1, 24, 32, 3)), 0).shape
    (1, 48, 4)
    """

    def __init__(
        self,
        *,
        depths: Sequence[int],
        widths: Sequence[int],
        normed: Collection[int] = (3,),
        layer_scale: float = 1e-6,
        drop_path_rate: float = 0.0,
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ):
        number = len(depths)
        if len(widths) != number or not set(normed) <= set(range(number)):
            raise ConfigError(
                f"{number} depths, {len(widths)} widths and norms for the stages "
                f"{tuple(normed)} do not fit together"
            )
        self.widths, self.stem_width = tuple(widths), widths[0]
        self.in_channels = in_channels
        self.strides = tuple(4 * 2**i for i in range(number))
        inputs = (in_channels, *widths)
        self.downsamples = nnx.List(
            [
                Downsample(inputs[i], width, 2 if i else 4, stem=i == 0, rngs=rngs)
                for i, width in enumerate(widths)
            ]
        )
        step = drop_path_rate / max(sum(depths) - 1, 1)
        rates = (step * i for i in itertools.count())
        self.stages = nnx.List(
            [
                nnx.List(
                    [
                        ConvNeXtBlock(
                            width, layer_scale=layer_scale, drop_path_rate=next(rates), rngs=rngs
                        )
                        for _ in range(depth)
                    ]
                )
                for depth, width in zip(depths, widths, strict=True)
            ]
        )
        self.norms = nnx.Dict(
            {str(i): LayerNorm(widths[i], epsilon=EPSILON) for i in sorted(normed)}
        )

    def enter(self, x: Float[Array, "b h w c"], stage: int) -> Float[Array, "b h2 w2 d"]:
        # The compute type is that of the weights, so that a step can cast both trees and be done.
        downsample = self.downsamples[stage]
        return downsample(x.astype(downsample.conv.kernel.dtype))

    def leave(self, x: Float[Array, "b h w d"], stage: int) -> Float[Array, "b h w d"]:
        return self.norms[str(stage)](x) if str(stage) in self.norms else x


@takes(ConvNeXt)
def convnext(variant: str, **options: Any) -> ConvNeXt:
    """A ConvNeXt of a named size; options override its fields (see `ConvNeXt`).

    >>> nnx.eval_shape(lambda: convnext("tiny", rngs=nnx.Rngs(0))).widths
    (96, 192, 384, 768)
    """
    if variant not in VARIANTS:
        raise ConfigError(f"unknown ConvNeXt variant {variant!r}; {nearest(variant, VARIANTS)}")
    return ConvNeXt(**{**VARIANTS[variant], **options})


NAMED = {
    f"convnext_{size}": without_positions(
        functools.partial(convnext, size), "ConvNeXt, arXiv:2201.03545"
    )
    for size in VARIANTS
}
