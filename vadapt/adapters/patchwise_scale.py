"""The patchwise-scale adapter of PAD: a bottleneck beside every MLP, gated token by token.

Source: PAD, arXiv:2312.08192, section 3; the layout (a branch parallel to the frozen MLP) is
AdaptFormer's, arXiv:2205.13535.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vadapt.adapters import surgery
from vadapt.adapters.bottleneck import Bottleneck, LayerGate
from vadapt.errors import ConfigError, nearest
from vadapt.nn.blocks import Branch
from vadapt.nn.drop import OptionalKey, split_key
from vadapt.nn.sites import Site, sites
from vadapt.partition import Adapter, mark

FUSIONS = ("concat", "sum", "side", "gside")
SCHEDULES = ("constant", "geometric", "linear")


class PatchwiseGate(nnx.Module):
    """One scale per token in (0, 1) from the frozen MLP's output and the adapter's; 0.5 at first.

    Args:
        fusion: what the gate reads: "concat" of both (the paper's), their "sum", the adapter's
            output alone ("side"), the MLP's alone ("gside").
    """

    def __init__(self, width: int, *, fusion: str = "concat", rngs: nnx.Rngs):
        if fusion not in FUSIONS:
            raise ConfigError(f"unknown fusion {fusion!r}; {nearest(fusion, FUSIONS)}")
        self.fusion = fusion
        inputs = 2 * width if fusion == "concat" else width
        self.proj = nnx.Linear(
            inputs, 1, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs
        )
        mark(self, Adapter)

    def __call__(
        self, frozen: Float[Array, "*b d"], side: Float[Array, "*b d"]
    ) -> Float[Array, "*b 1"]:
        fused = {
            "concat": lambda: jnp.concatenate([frozen, side], axis=-1),
            "sum": lambda: frozen + side,
            "side": lambda: side,
            "gside": lambda: frozen,
        }[self.fusion]()
        return jax.nn.sigmoid(self.proj(fused))


class PatchwiseScaleBranch(Branch):
    """An MLP branch with a gated bottleneck beside it: gate * adapter(x) + branch(x).

    The bottleneck reads the residual stream, not the branch's norm; the gate reads the MLP's
    output before layer scale; drop path never touches the adapter's term.
    """

    def __init__(self, branch: Branch, adapter: Bottleneck, gate: PatchwiseGate | LayerGate):
        super().__init__(
            branch.norm, branch.inner, scale=branch.scale, drop_path_rate=branch.drop_path_rate
        )
        self.adapter = adapter
        self.gate = gate

    def gated(
        self, x: Float[Array, "b *n d"], key: OptionalKey = None, *context: Any
    ) -> tuple[Float[Array, "b *n d"], Float[Array, "b *n 1"]]:
        """The branch's residual term, and the scale of every token."""
        path_key, adapter_key = split_key(key, 2)
        frozen = self.compute(x, *context)
        side = self.adapter(x, adapter_key)
        scale = self.gate(frozen, side)
        return scale * side + self.finish(frozen, path_key), scale

    def __call__(
        self, x: Float[Array, "b *n d"], key: OptionalKey = None, *context: Any
    ) -> Float[Array, "b *n d"]:
        return self.gated(x, key, *context)[0]


def apply(
    model: Any,
    *,
    hidden: int = 64,
    scale: str | float = "patchwise",
    fusion: str = "concat",
    norm: str = "in",
    norm_epsilon: float = 1e-5,
    dropout: float = 0.1,
    schedule: str = "constant",
    rngs: nnx.Rngs | None = None,
) -> Any:
    """Put a patchwise-scale adapter beside the MLP of every block; the given model stays as is.

    The new model computes what the old one did, bit for bit, until its adapters are trained.

    Args:
        model: anything whose `blocks` have an `mlp` branch (`vadapt.nn.blocks.Branch`).
        hidden: width of the bottleneck; h in the paper.
        scale: "patchwise" (the paper's gate), "learnable" (one per layer, from 0.5), or a number
            (one per layer, fixed; 0.5 is AdaptFormer's place in the paper's comparison).
        fusion: what the patchwise gate reads; see `PatchwiseGate`.
        norm: "in" is the paper's, "none" is without; "out" makes a norm that is never applied, as
            the released code does: it exists for its checkpoints only.
        norm_epsilon, dropout: see `Bottleneck`.
        schedule: of a fixed scale over depth: "constant", "geometric" (times 0.8 for every block
            before the last) or "linear" (from 0.1 to `scale`); the released code's modes 0, 1, 2.

    Raises:
        ConfigError: the model has no such blocks, or an option is unknown.

    >>> from vadapt.backbones.vit import vit
    >>> from vadapt.partition import count, split
    >>> model = apply(vit("micro", image_size=64, rngs=nnx.Rngs(0)), hidden=8)
    >>> count(split(model).trainable) == 6 * (2 * 96 * 8 + 8 + 5 * 96)
    True
    """
    surgery.check_mlps(model, "patchwise_scale")
    places = [site for site in sites(model, "branch") if site.name == "mlp"]
    rngs = rngs or nnx.Rngs(0)
    scales = iter(layer_scales(scale, schedule, len(places)))
    options = {"norm": norm, "norm_epsilon": norm_epsilon, "dropout": dropout}

    def make(site: Site, _: Any) -> PatchwiseScaleBranch:
        branch: Any = site.module
        if hasattr(branch, "adapter"):
            raise ConfigError("the MLP branches of the model have adapters already")
        width, layer_scale = branch.norm.width, next(scales)
        if scale == "patchwise":
            gate = PatchwiseGate(width, fusion=fusion, rngs=rngs)
        else:
            gate = LayerGate(layer_scale, learnable=scale == "learnable")
        return PatchwiseScaleBranch(branch, Bottleneck(width, hidden, **options, rngs=rngs), gate)

    return surgery.replace(model, ["mlp"], make, kinds=["branch"], method="patchwise_scale")


def layer_scales(scale: str | float, schedule: str, depth: int) -> list[float]:
    """The fixed or initial scale of every layer; 0.5 for learned ones.

    The released code writes its schedules for 12 layers; here they span any depth.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f"unknown schedule {schedule!r}; {nearest(schedule, SCHEDULES)}")
    if isinstance(scale, str):
        if scale not in ("patchwise", "learnable"):
            raise ConfigError(
                f"scale {scale!r} is neither a number nor "
                f"{nearest(scale, ('patchwise', 'learnable'))}"
            )
        return [0.5] * depth
    if schedule == "geometric":
        return [scale * 0.8 ** (depth - 1 - i) for i in range(depth)]
    if schedule == "linear":
        return [float(value) for value in np.linspace(0.1, scale, depth)]
    return [float(scale)] * depth
