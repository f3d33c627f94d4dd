"""AdaptFormer: a scaled bottleneck beside the MLP of every block, or behind it.

Source: arXiv:2205.13535; places, starts and options as in its released code.
"""

from __future__ import annotations

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from vadapt.adapters import surgery
from vadapt.adapters.bottleneck import Bottleneck, LayerGate
from vadapt.errors import ConfigError, nearest
from vadapt.nn.blocks import Branch
from vadapt.nn.drop import OptionalKey, split_key
from vadapt.nn.sites import Site

OPTIONS = ("parallel", "sequential")


class AdaptFormerBranch(Branch):
    """An MLP branch with a scaled bottleneck: branch(x) + s * adapter(x), or m + s * adapter(m).

    In parallel the bottleneck reads the residual stream without a norm, in sequence the branch's
    term m. Drop path never touches what it adds.
    """

    def __init__(self, branch: Branch, adapter: Bottleneck, gate: LayerGate, *, sequential: bool):
        super().__init__(
            branch.norm, branch.inner, scale=branch.scale, drop_path_rate=branch.drop_path_rate
        )
        self.adapter, self.gate, self.sequential = adapter, gate, sequential

    def added(self, x: Float[Array, "*b d"], key: OptionalKey = None) -> Float[Array, "*b d"]:
        """The scaled output of the bottleneck; normed, where the norm is behind."""
        y = self.adapter(x, key)
        y = y * self.gate(y, y)
        norm = self.adapter.norm
        return y if norm is None or self.adapter.norm_first else norm(y)

    def __call__(
        self, x: Float[Array, "b *n d"], key: OptionalKey = None, *context: Any
    ) -> Float[Array, "b *n d"]:
        path_key, adapter_key = split_key(key, 2)
        term = self.finish(self.compute(x, *context), path_key)
        return term + self.added(term if self.sequential else x, adapter_key)


def apply(
    model: Any,
    *,
    hidden: int = 64,
    scale: str | float = 0.1,
    option: str = "parallel",
    norm: str = "none",
    norm_epsilon: float = 1e-5,
    dropout: float = 0.1,
    rngs: nnx.Rngs | None = None,
) -> Any:
    """Put a bottleneck beside, or behind, the MLP of every block; the given model stays as is.

    The new model computes what the old one did, bit for bit, until its adapters are trained.

    Args:
        model: anything whose `blocks` have an `mlp` branch (`vadapt.nn.blocks.Branch`).
        hidden: width of the bottleneck.
        scale: a number (one per layer, fixed), or "learnable" (one per layer, from 1).
        option: "parallel" to the MLP, the paper's choice, or "sequential".
        norm: of the bottleneck: "in" before it, "out" behind the scale, "none" in the scripts.
        norm_epsilon, dropout: see `Bottleneck`.

    Raises:
        ConfigError: the model has no such blocks, or an option is unknown.

    >>> from vadapt.backbones.vit import vit
    >>> from vadapt.partition import count, split
    >>> model = apply(vit("micro", image_size=64, rngs=nnx.Rngs(0)), hidden=8)
    >>> count(split(model).trainable) == 6 * (2 * 96 * 8 + 8 + 96)
    True
    """
    if option not in OPTIONS:
        raise ConfigError(f"unknown option {option!r}; {nearest(option, OPTIONS)}")
    learnable = scale == "learnable"
    if isinstance(scale, str) and not learnable:
        raise ConfigError(f"scale {scale!r} is neither a number nor 'learnable'")
    surgery.check_mlps(model, "adaptformer")
    rngs = rngs or nnx.Rngs(0)
    options = {"norm": norm, "norm_epsilon": norm_epsilon, "dropout": dropout}

    def make(site: Site, _: Any) -> AdaptFormerBranch:
        branch: Any = site.module
        if hasattr(branch, "adapter"):
            raise ConfigError("the MLP branches of the model have adapters already")
        adapter = Bottleneck(branch.norm.width, hidden, **options, rngs=rngs)
        gate = LayerGate(1.0 if learnable else float(scale), learnable=learnable)
        return AdaptFormerBranch(branch, adapter, gate, sequential=option == "sequential")

    return surgery.replace(model, ["mlp"], make, kinds=["branch"], method="adaptformer")
