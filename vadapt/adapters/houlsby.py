"""The Houlsby adapter: a bottleneck behind the attention and behind the MLP of every block.

Source: arXiv:1902.00751; the start and the tanh form of GELU as in its released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flax import nnx

from vadapt.adapters import surgery
from vadapt.adapters.bottleneck import Bottleneck, Followed
from vadapt.adapters.changed import change
from vadapt.errors import ConfigError
from vadapt.nn.activations import gelu_tanh
from vadapt.nn.sites import Site


class FollowedByHoulsby(Followed):
    """A layer with Houlsby's bottleneck behind it."""

    method = "houlsby"


def bottleneck(width: int, hidden: int, *, std: float = 1e-3, rngs: nnx.Rngs) -> Bottleneck:
    """Return a bottleneck as this method starts it, which is nearly zero: see `apply`."""
    init = nnx.initializers.truncated_normal(std)
    options = {"norm": "none", "dropout": 0.0, "activation": gelu_tanh}
    return Bottleneck(width, hidden, **options, down_init=init, up_init=init, rngs=rngs)


def apply(
    model: Any,
    *,
    hidden: int = 64,
    std: float = 1e-3,
    targets: Sequence[str] = ("attn_out", "mlp_out"),
    rngs: nnx.Rngs | None = None,
) -> Any:
    """Put a bottleneck behind attention and MLP of every block; the given model stays as it is.

    The paper trains the norms besides: `trainable="default,.*norm/(scale|bias)"`. What it is for
    has its norms behind the residual sum; adapters stand before that sum here, too.

    Args:
        model: a backbone whose layers say what they do (see `Site`), or any NNX module.
        hidden: width of the bottlenecks.
        std: of the kernels at the start, normal and cut off at twice that; so the new model is
            nearly the old one, and not to the bit.
        targets: the layers that it stands behind (see `surgery.replace`); ("mlp_out",) for
            backbones without attention.

    Raises:
        ConfigError: a target that is nowhere, no width, or a start from which nothing learns.

    >>> from vadapt.backbones.vit import vit
    >>> from vadapt.partition import count, split
    >>> model = apply(vit("micro", image_size=64, rngs=nnx.Rngs(0)), hidden=8)
    >>> count(split(model).trainable) == 6 * 2 * (2 * 96 * 8 + 8 + 96)
    True
    """
    if std <= 0:
        raise ConfigError(f"houlsby needs a std above 0, got {std}: from zeros nothing learns")
    rngs = rngs or nnx.Rngs(0)

    def make(site: Site, _: tuple[int, ...] | None) -> Any:
        layer: Any = site.module
        adapter = bottleneck(layer.kernel.shape[-1], hidden, std=std, rngs=rngs)
        return change(FollowedByHoulsby, layer, adapter)

    kinds = ("linear", "conv")
    return surgery.replace(model, targets, make, kinds=kinds, method="houlsby")
