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
from vadapt.errors import ConfigError, nearest
from vadapt.nn.blocks import Branch
from vadapt.nn.drop import OptionalKey, dropout, split_key
from vadapt.nn.linear import uniform
from vadapt.nn.norms import LayerNorm
from vadapt.nn.sites import Site, sites
from vadapt.partition import Adapter, Constant, mark

FUSIONS = ("concat", "sum", "side", "gside")
NORMS = ("in", "out", "none")
SCHEDULES = ("constant", "geometric", "linear")


class Bottleneck(nnx.Module):
    """Norm, down, ReLU, dropout, up; no residual inside. Zero at the start.

    Args:
        norm: "in" normalises the input (the paper's); "none" does not. "out" makes a norm that
            is never applied, as the released code does: it exists for its checkpoints only.
        norm_epsilon: 1e-5 as in the released code, whose trunk has 1e-6.
        dropout: rate on the hidden activations, in training.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        norm: str = "in",
        norm_epsilon: float = 1e-5,
        dropout: float = 0.1,
        rngs: nnx.Rngs,
    ):
        if norm not in NORMS:
            raise ConfigError(f"unknown adapter norm {norm!r}; {nearest(norm, NORMS)}")
        down_init = uniform(width**-0.5)  # Kaiming-uniform with a = sqrt(5)
        self.dropout = dropout
        self.unused_norm = norm == "out"
        self.norm = None if norm == "none" else LayerNorm(width, epsilon=norm_epsilon)
        self.down = nnx.Linear(width, hidden, kernel_init=down_init, rngs=rngs)
        self.up = nnx.Linear(hidden, width, kernel_init=nnx.initializers.zeros, rngs=rngs)
        mark(self, Adapter)

    def __call__(self, x: Float[Array, "*b d"], key: OptionalKey = None) -> Float[Array, "*b d"]:
        hidden = x if self.norm is None or self.unused_norm else self.norm(x)
        hidden = jax.nn.relu(self.down(hidden))
        return self.up(dropout(hidden, self.dropout, key))


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


class LayerGate(nnx.Module):
    """One scale for a whole layer, fixed or learned."""

    def __init__(self, initial: float, *, learnable: bool):
        value = jnp.full((1,), initial, jnp.float32)
        self.scale = Adapter(value) if learnable else Constant(value)

    def __call__(
        self, frozen: Float[Array, "*b d"], side: Float[Array, "*b d"]
    ) -> Float[Array, "*b 1"]:
        return jnp.broadcast_to(self.scale[...].astype(side.dtype), (*side.shape[:-1], 1))


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
        norm, norm_epsilon, dropout: see `Bottleneck`.
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
    places = [site for site in sites(model, "branch") if site.name == "mlp"]
    if not places:
        raise ConfigError(
            "patchwise_scale stands beside the `mlp` branch of every block; this "
            f"{type(model).__name__} has none. Give it a ViT or another model built of "
            "vadapt.nn.blocks.Block."
        )
    rngs = rngs or nnx.Rngs(0)
    scales = iter(layer_scales(scale, schedule, len(places)))
    options = {"norm": norm, "norm_epsilon": norm_epsilon, "dropout": dropout}

    def make(site: Site, _: Any) -> PatchwiseScaleBranch:
        branch: Any = site.module
        if isinstance(branch, PatchwiseScaleBranch):
            raise ConfigError("the model already has patchwise-scale adapters")
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
