"""SVF: frozen kernels as U diag(S) V^T, of which the singular values S alone are trained.

Source: arXiv:2206.06122. In the released code ranks are rounded down to a multiple of 4, and linear
layers and convolutions of groups compute something else than before; here all start as they were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vadapt.adapters import surgery
from vadapt.adapters.changed import Changed, change
from vadapt.errors import ConfigError
from vadapt.nn.sites import Site
from vadapt.partition import Adapter, Factor


class Decomposed(Changed):
    """A linear layer or a convolution whose kernel is taken apart; it keeps its path, unused.

    A convolution of g groups is g matrices, each with singular values of its own.

    Args:
        rank: singular values a group that are kept, the largest; None for all.
    """

    method, adds = "svf", ("conv_v", "vector_s", "conv_u")
    kernel: nnx.Param
    bias: nnx.Param | None

    def __init__(self, layer: Any, rank: int | None = None):
        super().__init__(layer)
        groups, kernel = _groups(layer), layer.kernel[...].astype(jnp.float32)
        columns = kernel.reshape(-1, groups, kernel.shape[-1] // groups).swapaxes(0, 1)
        down, values, up = jnp.linalg.svd(columns, full_matrices=False)
        down, values, up = down[..., :rank], values[:, :rank], up[:, :rank]
        self.conv_v = Factor(down.swapaxes(0, 1).reshape(*kernel.shape[:-1], -1))
        self.vector_s = Adapter(values.reshape(-1))
        self.conv_u = Factor(up)  # [g, r, o]

    def __call__(self, inputs: Float[Array, "*b i"]) -> Float[Array, "*c o"]:
        thin = self._project(inputs)
        thin = thin * jnp.broadcast_to(self.vector_s[...].astype(thin.dtype), thin.shape)
        up = self.conv_u[...].astype(thin.dtype)
        y = jnp.einsum("...gr,gro->...go", thin.reshape(*thin.shape[:-1], *up.shape[:2]), up)
        y = y.reshape(*thin.shape[:-1], -1)
        return y if self.bias is None else y + jnp.broadcast_to(self.bias[...], y.shape)

    def folded(self) -> Any:
        """A plain layer that computes the same."""
        layer, kernel, up = self.plain_layer(), self.kernel, self.conv_u[...].astype(jnp.float32)
        groups, rank = up.shape[:2]
        down, values = (x[...].astype(jnp.float32) for x in (self.conv_v, self.vector_s))
        down = (down * jnp.broadcast_to(values, down.shape)).reshape(-1, groups, rank)
        changed = jnp.einsum("igr,gro->igo", down, up)
        layer.kernel = nnx.Param(changed.reshape(kernel.shape).astype(kernel.dtype))
        return layer

    def _project(self, x: Float[Array, "*b i"]) -> Float[Array, "*c r"]:
        """The input along the singular vectors: the layer with these as its kernel, no bias."""
        layer, down = self.plain_layer(), self.conv_v[...]
        layer.bias, layer.use_bias = nnx.data(None), False
        layer.kernel, layer.out_features = nnx.Param(down), down.shape[-1]
        if isinstance(layer, nnx.Conv):
            layer.kernel_shape = down.shape
        return layer(x)


def apply(
    model: Any,
    *,
    targets: Sequence[str] | None = None,
    rank_multiple: int = 1,
    rngs: nnx.Rngs | None = None,
) -> Any:
    """Train the singular values of frozen kernels; the given model stays as it is.

    The kernels are taken apart as they are now: give a model that has its weights. The new model
    computes what the old one did, to rounding, at about a fifth more work in these layers;
    `vadapt.fold` puts the kernels together again.

    Args:
        model: a backbone, of whose blocks the layers are, or any NNX module.
        targets: which linear layers and convolutions (see `surgery.replace`); by default all, but
            for those of the first of several stages, as in the paper.
        rank_multiple: ranks are rounded down to a multiple of it, which takes the smallest
            singular values away; the released code has 4.

    Raises:
        ConfigError: a target that is nowhere, or a layer that is no plain matrix.

    >>> from vadapt.backbones.vit import vit
    >>> from vadapt.partition import count, split
    >>> model = apply(vit("micro", depth=1, image_size=16, rngs=nnx.Rngs(0)))
    >>> count(split(model).trainable) == 5 * 96
    True
    """
    if rank_multiple < 1:
        raise ConfigError(f"svf rounds ranks to a multiple of {rank_multiple}; give 1 or more")
    if targets is None:
        several = len(getattr(model, "stages", ())) > 1
        targets = (r"(?!stages/0/).*",) if several else (".*",)

    def make(site: Site, _: tuple[int, ...] | None) -> Any:
        layer: Any = site.module
        if not isinstance(layer, nnx.Linear | nnx.Conv):
            raise ConfigError(
                f"svf takes the kernels of linear layers and convolutions apart, and {site.path} "
                f"is a {type(layer).__name__}; leave this layer out of the targets"
            )
        full = full_rank(layer)
        return change(Decomposed, layer, max(full // rank_multiple * rank_multiple, 1))

    return surgery.replace(model, targets, make, kinds=("linear", "conv"), method="svf")


def full_rank(layer: Any) -> int:
    """Return the number of singular values of a layer's kernel, of each group where it has some."""
    *inputs, outputs = layer.kernel.shape
    return min(math.prod(inputs), outputs // _groups(layer))


def _groups(layer: Any) -> int:
    return getattr(layer, "feature_group_count", 1)
