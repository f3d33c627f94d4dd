"""The Pfeiffer adapter for images: a bottleneck behind the last layer of every MLP.

Source: arXiv:2005.00247, as VPT (arXiv:2203.12119) compares itself with it. Its released code
starts all weights of the adapter at zero, so that nothing but the last bias ever learns: here the
first matrix does not start at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import nnx

from vadapt.adapters import surgery
from vadapt.adapters.bottleneck import Bottleneck, Followed
from vadapt.adapters.changed import change
from vadapt.errors import ConfigError
from vadapt.nn.activations import gelu_exact
from vadapt.nn.sites import Site


class FollowedByPfeiffer(Followed):
    """A layer with Pfeiffer's bottleneck behind it."""

    method = "pfeiffer"


def apply(
    model: Any,
    *,
    reduction: int = 8,
    targets: Sequence[str] = ("mlp_out",),
    rngs: nnx.Rngs | None = None,
) -> Any:
    """Put a bottleneck behind the MLP of every block; the given model stays as it is.

    It stands before layer scale, and computes what the old one did until it is trained.

    Args:
        model: a backbone whose layers say what they do (see `Site`), or any NNX module.
        reduction: the bottleneck is this many times thinner than what it reads.
        targets: the layers that it stands behind (see `surgery.replace`).

    Raises:
        ConfigError: a target that is nowhere, or a reduction that leaves no channel.

    >>> from vadapt.backbones.vit import vit
    >>> from vadapt.partition import count, split
    >>> model = apply(vit("micro", image_size=64, rngs=nnx.Rngs(0)), reduction=8)
    >>> count(split(model).trainable) == 6 * (2 * 96 * 12 + 12 + 96)
    True
    """
    if reduction < 1:
        raise ConfigError(f"pfeiffer needs a reduction of at least 1, got {reduction}")
    rngs = rngs or nnx.Rngs(0)

    def make(site: Site, _: tuple[int, ...] | None) -> Any:
        layer: Any = site.module
        width = layer.kernel.shape[-1]
        adapter = Bottleneck(
            width,
            width // reduction,
            norm="none",
            dropout=0.0,
            activation=gelu_exact,
            down_init=nnx.initializers.normal(1e-3),
            rngs=rngs,
        )
        return change(FollowedByPfeiffer, layer, adapter)

    kinds = ("linear", "conv")
    return surgery.replace(model, targets, make, kinds=kinds, method="pfeiffer")
