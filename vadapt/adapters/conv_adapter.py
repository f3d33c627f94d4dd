"""Conv-Adapter: a thin convolution of groups beside, or behind, convolutions and blocks.

Source: arXiv:2208.07463; places and starts of "conv_parallel" as in its released code, which has
no other scheme that works.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vadapt.adapters import surgery
from vadapt.adapters.bottleneck import Followed
from vadapt.adapters.changed import Changed, change
from vadapt.errors import ConfigError, nearest
from vadapt.nn.activations import gelu_exact
from vadapt.nn.linear import uniform
from vadapt.nn.sites import Site, sites
from vadapt.partition import Adapter, mark

SCHEMES = ("conv_parallel", "conv_sequential", "residual_parallel", "residual_sequential")
SMALL = nnx.initializers.truncated_normal(0.02)


class ConvAdapter(nnx.Module):
    """se * conv2(act(conv1(x))): a convolution of as many groups as it gives channels, then a 1x1.

    Args:
        hidden: channels between the two, each of inputs / hidden channels.
        like: strides, padding and dilation of the first, as `nnx.Conv` takes them.
        small: kernels start truncated normal with a deviation of 0.02 and biases at zero, as for
            ConvNeXt; else all uniform, by the number of inputs, as PyTorch starts convolutions.
        scale: the learned factor per channel starts at that.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int,
        kernel: tuple[int, int],
        *,
        activation: Callable[[Array], Array],
        small: bool = False,
        scale: float = 1.0,
        rngs: nnx.Rngs,
        **like: Any,
    ):
        def conv(
            inputs: int, outputs: int, kernel: tuple[int, int], groups: int, **like: Any
        ) -> Any:
            limit = (kernel[0] * kernel[1] * inputs // groups) ** -0.5
            inits = (SMALL, nnx.initializers.zeros) if small else (uniform(limit), uniform(limit))
            return nnx.Conv(
                inputs,
                outputs,
                kernel,
                feature_group_count=groups,
                kernel_init=inits[0],
                bias_init=inits[1],
                rngs=rngs,
                **like,
            )

        self.activation = activation
        self.conv1 = conv(inputs, hidden, kernel, hidden, **like)
        self.conv2 = conv(hidden, outputs, (1, 1), 1)
        self.se = nnx.Param(jnp.full((outputs,), scale, jnp.float32))
        mark(self, Adapter)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        y = self.conv2(self.activation(self.conv1(x)))
        return y * jnp.broadcast_to(self.se[...].astype(y.dtype), y.shape)


class Parallel(Changed):
    """A convolution, or a block, with an adapter of its input beside it: y + adapter(x)."""

    method, adds = "conv_adapter", ("adapter",)

    def __init__(self, layer: Any, adapter: ConvAdapter):
        super().__init__(layer)
        self.adapter = adapter

    def __call__(self, inputs: Float[Array, "b h w c"], *args: Any, **kwargs: Any) -> Array:
        frozen: Any = super().__call__
        return frozen(inputs, *args, **kwargs) + self.adapter(inputs)


class Sequential(Followed):
    """A convolution, or a block, with an adapter of its output behind it: y + adapter(y)."""

    method = "conv_adapter"


def apply(
    model: Any,
    *,
    reduction: int = 4,
    scheme: str = "conv_parallel",
    scale: float = 1.0,
    rngs: nnx.Rngs | None = None,
) -> Any:
    """Put convolutional adapters into the blocks of a frozen network; it stays as it is.

    They stand around convolutions of more than one place, with the same kernel and stride: in
    ResNet around the 3x3 ones with their norm and activation, in ConvNeXt around the depthwise
    ones, and those between stages. ConvNeXt's norms train besides in the released code: see
    `vadapt.adapters.paper`.

    Args:
        model: a backbone of stages whose blocks have such convolutions.
        reduction: input channels a hidden one; gamma in the paper.
        scheme: "conv_parallel" (the paper's choice) reads what the convolution reads,
            "conv_sequential" what it gives; "residual_parallel" and "residual_sequential" do so
            with whole blocks.
        scale: what the learned factor per channel starts at; 0 starts with the frozen model.

    Raises:
        ConfigError: no such convolutions, channels that are no multiple of `reduction`, or an
            unknown scheme.

    >>> from vadapt.backbones.resnet import ResNet
    >>> from vadapt.partition import count, split
    >>> model = nnx.eval_shape(lambda: apply(ResNet(50, rngs=nnx.Rngs(0)), reduction=8))
    >>> count(split(model).trainable)
    199192
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"unknown scheme {scheme!r}; {nearest(scheme, SCHEMES)}")
    part, _, order = scheme.partition("_")
    rngs = rngs or nnx.Rngs(0)

    def make(site: Site, _: Any) -> Any:
        inputs, outputs, conv, normed = _described(site)
        parallel = order == "parallel"
        like = _like(conv) if parallel else {"padding": "SAME"}
        read = inputs if parallel else outputs
        if reduction < 1 or read % reduction:
            raise ConfigError(
                f"conv_adapter: the {read} channels at {site.path} are no multiple of "
                f"reduction={reduction}; choose a divisor"
            )
        adapter = ConvAdapter(
            read,
            outputs,
            read // reduction,
            conv.kernel.shape[:2],
            activation=jax.nn.relu if normed else gelu_exact,
            small=not normed,
            scale=scale,
            rngs=rngs,
            **like,
        )
        return change(Parallel if parallel else Sequential, site.module, adapter)

    wanted = _places(model, part)
    targets, kinds = [site.path for site in wanted], {site.kind for site in wanted}
    whole = part == "conv"
    return surgery.replace(
        model, targets, make, kinds=sorted(kinds), method="conv_adapter", whole=whole
    )


def _places(model: Any, part: str) -> list[Site]:
    """The sites that adapters stand around: convolutions, or blocks that have some.

    Raises:
        ConfigError: there are none in the model's blocks.
    """
    found = [site for site in sites(model, "conv_norm", "conv", whole=True) if _is_spatial(site)]
    normed = tuple(f"{site.path}/" for site in found if site.kind == "conv_norm")
    inner = [s for s in found if s.path.startswith("stages/") and not s.path.startswith(normed)]
    if not inner:
        raise ConfigError(
            "conv_adapter stands around convolutions of more than one place in blocks; this "
            f"{type(model).__name__} has none. Give it a ResNet or a ConvNeXt."
        )
    if part == "residual":
        paths = {"/".join(site.path.split("/")[:3]) for site in inner}
        return [site for site in sites(model, "block") if site.path in paths]
    between = [s for s in found if re.fullmatch("downsamples/[1-9].*", s.path)]
    return inner + [s for s in between if not s.path.startswith(normed)]


def _is_spatial(site: Site) -> bool:
    return max(_conv_of(site.module).kernel.shape[:-2], default=1) > 1


def _conv_of(module: Any) -> Any:
    return getattr(module, "conv", module)


def _described(site: Site) -> tuple[int, int, Any, bool]:
    """Channels in and out of what stands at a site, its convolution, and whether that is normed."""
    if site.kind != "block":
        conv = _conv_of(site.module)
        return conv.in_features, conv.out_features, conv, site.kind == "conv_norm"
    convs = {s.path: s.module for s in sites(site.module, "conv")}
    first, *_, last = [convs[path] for path in sorted(convs) if "shortcut" not in path] * 2
    spatial = max(convs.values(), key=lambda conv: (conv.kernel.shape[0], _stride(conv)))
    normed = any(_is_spatial(s) for s in sites(site.module, "conv_norm"))
    return first.in_features, last.out_features, spatial, normed


def _stride(conv: Any) -> int:
    return conv.strides if isinstance(conv.strides, int) else max(conv.strides)


def _like(conv: Any) -> dict[str, Any]:
    """Options of a convolution that gives maps of the same size."""
    return {
        "strides": conv.strides,
        "padding": conv.padding,
        "kernel_dilation": conv.kernel_dilation,
    }
