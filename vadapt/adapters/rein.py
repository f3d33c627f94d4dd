"""Rein: learned tokens that refine what every block of a frozen backbone gives to the next.

The same tokens, pooled over the layers, are the object queries of a mask decoder.

Source: Rein, arXiv:2312.04265, section 3. Where paper and released code differ, the defaults are
the code's; see `STARTS`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vadapt.errors import ConfigError, nearest
from vadapt.nn.hooks import Hook, add_hook, check_place, hooks_of
from vadapt.nn.linear import uniform
from vadapt.nn.tokens import Tokens
from vadapt.options import takes
from vadapt.partition import Adapter


class Start(NamedTuple):
    """The first values of a Rein's linear layers, and whether its corrections are scaled."""

    scaled: bool = True  # by one learned number; else added as they are
    zero_delta: bool = False  # the layer that gives corrections is zero: the frozen model at first
    zero_biases: bool = False
    deviation: float | None = None  # of normal weights; None: uniform by the layer's inputs


STARTS = {
    "released": Start(),
    "zero": Start(scaled=False, zero_delta=True),  # the released code's `zero_mlp_delta_f`
    "paper": Start(scaled=False, zero_delta=True, zero_biases=True),
    "eva02": Start(zero_biases=True, deviation=0.02),  # what the released EVA-02 starts from
}


def refine(
    features: Float[Array, "*b n d"],
    tokens: Float[Array, "m d"],
    values: Float[Array, "m d"],
    kernel: Float[Array, "d d"],
    bias: Float[Array, " d"],
    scale: Float[Array, ""] | None = None,
    *,
    softmax: bool = True,
) -> Float[Array, "*b n d"]:
    """Features plus their correction: what the tokens like them say, through one linear layer.

    Args:
        features: of patches; the class token and registers are not refined.
        tokens: one layer's, which patches are compared with.
        values: what the tokens say. The first says nothing, so that a patch may take little from
            all others: a row of zeros.
        kernel, bias: the linear layer that gives the correction.
        scale: of the correction; None for 1.
        softmax: over the tokens, in float32; without it, plain products weigh them.
    """
    weights = jnp.einsum("...nd,md->...nm", features, tokens, preferred_element_type=jnp.float32)
    if softmax:
        weights = jax.nn.softmax(weights * features.shape[-1] ** -0.5, axis=-1)
    said = jnp.einsum("...nm,md->...nd", weights.astype(values.dtype), values)
    # One product with the kernel for both terms; folding it into `values` would save nothing.
    correction = (said + features) @ kernel
    correction = correction + jnp.broadcast_to(bias, correction.shape)
    return features + (correction if scale is None else scale * correction)


class LayerLinear(nnx.Module):
    """A linear layer that all blocks share, or (with `copies`) one for each block."""

    def __init__(
        self, inputs: int, outputs: int, copies: int | None, start: Start, *, rngs: nnx.Rngs
    ):
        kernel_init = bias_init = uniform(inputs**-0.5)
        if start.deviation is not None:
            kernel_init = nnx.initializers.truncated_normal(start.deviation)
        if start.zero_biases:
            bias_init = nnx.initializers.zeros
        lead = () if copies is None else (copies,)
        self.kernel = Adapter(kernel_init(rngs.params(), (*lead, inputs, outputs)))
        self.bias = Adapter(bias_init(rngs.params(), (*lead, outputs)))

    def __call__(self, x: Float[Array, "*l m d"]) -> Float[Array, "*l m e"]:
        y = x @ self.kernel[...]
        return y + jnp.broadcast_to(jnp.expand_dims(self.bias[...], -2), y.shape)

    def of(self, layer: int) -> tuple[Float[Array, "d e"], Float[Array, " e"]]:
        """Weights and biases for one block."""
        kernel, bias = self.kernel[...], self.bias[...]
        return (kernel, bias) if kernel.ndim == 2 else (kernel[layer], bias[layer])

    def zero(self) -> LayerLinear:
        """The same layer, with zeros."""
        self.kernel[...] = jnp.zeros_like(self.kernel[...])
        self.bias[...] = jnp.zeros_like(self.bias[...])
        return self


class Shared(NamedTuple):
    """What the refined blocks read in a forward pass, an array for each."""

    tokens: tuple[Float[Array, "m d"], ...]
    values: tuple[Float[Array, "m d"], ...]


class Rein(Hook):
    """Tokens of some blocks, and the layers that turn them into corrections and into queries.

    Patches are refined; class token, registers and prompts pass unchanged.

    Args:
        layers: numbers of the refined blocks; tokens are listed in this order.
        num_tokens: a layer; m in the paper.
        rank: of the tokens of a layer; None for tokens of full rank.
        query_width: of the object queries; None leaves them out, for heads with their own.
        softmax: see `refine`.
        start: "released" (corrections scaled by a learned number), "zero" or "paper" (unscaled and
            zero at first, so that the new model computes what the old one did, bit for bit; the
            paper's biases are zero too), "eva02" (as released for it: normal weights).
        scale: first value of the learned number.
        shared: whether all layers share their linear layers; the paper's ablation has one each.
        patch_size: enters the first tokens' size only; what was released has 16 throughout.

    Raises:
        ConfigError: an option's value is unknown.
    """

    def __init__(
        self,
        layers: Sequence[int],
        width: int,
        *,
        num_tokens: int = 100,
        rank: int | None = 16,
        query_width: int | None = 256,
        softmax: bool = True,
        start: str = "released",
        scale: float = 1e-3,
        shared: bool = True,
        patch_size: int = 16,
        rngs: nnx.Rngs,
    ):
        if start not in STARTS:
            raise ConfigError(f"unknown start {start!r}; {nearest(start, STARTS)}")
        first = STARTS[start]
        if num_tokens < 1 or (rank is not None and rank < 1):
            raise ConfigError(f"{num_tokens} tokens of rank {rank}; both start at 1")
        self.layers, self.softmax = tuple(layers), softmax
        self.rank, depth = rank, len(self.layers)
        outputs = width if rank is None else (width * rank) ** 0.5
        init = uniform((6 / (3 * patch_size**2 + outputs)) ** 0.5)

        def tokens(*shape: int) -> Adapter:
            return Adapter(init(rngs.params(), (depth, *shape)))

        def linear(inputs: int, outputs: int, shared: bool = shared) -> LayerLinear:
            return LayerLinear(inputs, outputs, None if shared else depth, first, rngs=rngs)

        if rank is None:
            self.tokens = tokens(num_tokens, width)
        else:
            self.tokens_a, self.tokens_b = tokens(num_tokens, rank), tokens(rank, width)
        self.scale = Adapter(jnp.asarray(scale, jnp.float32)) if first.scaled else None
        self.token_to_feature = linear(width, width)
        self.delta = linear(width, width).zero() if first.zero_delta else linear(width, width)
        linked = query_width is not None
        self.transform = linear(width, query_width) if linked else None
        self.merge = linear(3 * query_width, query_width, shared=True) if linked else None

    def all_tokens(self) -> Float[Array, "l m d"]:
        """The tokens of every layer, multiplied out if they are of low rank."""
        if self.rank is None:
            return self.tokens[...]
        return jnp.einsum("lmr,lrd->lmd", self.tokens_a[...], self.tokens_b[...])

    def start(self, images: Float[Array, "b h w c"]) -> Shared:
        tokens = self.all_tokens()
        return Shared(_rows(tokens), _rows(self.token_to_feature(tokens).at[:, 0].set(0.0)))

    def acts(self, number: int) -> bool:
        return number in self.layers

    def after(self, number: int, x: Tokens, state: Shared) -> tuple[Tokens, Shared]:
        layer = self.layers.index(number)
        scale = None if self.scale is None else self.scale[...]
        weights = (state.tokens[layer], state.values[layer], *self.delta.of(layer), scale)
        patches = x.array if x.array.ndim == 4 else x.patches
        return x.with_patches(refine(patches, *weights, softmax=self.softmax)), state

    def outputs(self, state: Shared, found: Mapping[str, Any]) -> dict[str, Any]:
        """The object queries as "queries"; of stages that have a Rein each, their sum."""
        if self.transform is None:
            return {}
        queries = self.queries()
        return {"queries": found["queries"] + queries if "queries" in found else queries}

    def queries(self) -> Float[Array, "m q"]:
        """The tokens as object queries: largest, mean and last over the layers, merged.

        Raises:
            ConfigError: the tokens are not linked to queries.
        """
        if self.transform is None or self.merge is None:
            raise ConfigError("this Rein has no queries; apply it with a query_width")
        layers = self.transform(self.all_tokens())
        pooled = jnp.stack([layers.max(axis=0), layers.mean(axis=0), layers[-1]], axis=-1)
        # Channel by channel, the three side by side: not three blocks of channels.
        return self.merge(pooled.reshape(pooled.shape[0], -1))


def _rows(x: Float[Array, "l m d"]) -> tuple[Float[Array, "m d"], ...]:
    """One array a layer: gradients of a split are laid side by side once, those of x[i] added."""
    return tuple(row[0] for row in jax.lax.split(x, [1] * x.shape[0]))


@takes(Rein)
def apply(
    model: Any,
    *,
    layers: Sequence[int] | None = None,
    rngs: nnx.Rngs | None = None,
    **options: Any,
) -> Any:
    """Apply Rein after blocks of a model, as its `adapter`; the given model stays as it is.

    Args:
        model: a backbone of `blocks`, or of `stages` of blocks, which get a Rein each.
        layers: numbers of the refined blocks, negative from the end; None for all. The released
            SAM refines those with global attention.
        options: those of `Rein` from `num_tokens` on.

    Raises:
        ConfigError: the model has no such blocks, or an option's value is unknown.

    >>> from vadapt.backbones.vit import vit
    >>> from vadapt.partition import count, split
    >>> model = apply(vit("micro", image_size=64, rngs=nnx.Rngs(0)), query_width=None)
    >>> count(split(model).trainable) == 6 * 16 * (100 + 96) + 2 * (96 * 96 + 96) + 1
    True
    """
    check_place(model, "adapter")
    options["rngs"] = rngs or nnx.Rngs(0)
    model = nnx.clone(model)
    if not hasattr(model, "stages"):
        chosen = chosen_layers(layers, model.depth)
        add_hook(model, "adapter", Rein(chosen, model.width, **options))
        return model
    if layers is not None:
        raise ConfigError(f"all blocks of a model of stages are refined, not {tuple(layers)}")
    numbers = itertools.count()
    stages = [
        Rein([next(numbers) for _ in blocks], width, **options)
        for blocks, width in zip(model.stages, model.widths, strict=True)
    ]
    add_hook(model, "adapter", stages)
    return model


def chosen_layers(layers: Sequence[int] | None, depth: int) -> tuple[int, ...]:
    """Block numbers from 0, in their order; all for None."""
    layers = range(depth) if layers is None else layers
    if not layers or any(not -depth <= layer < depth for layer in layers):
        raise ConfigError(f"layers {tuple(layers)} of a model with {depth} blocks")
    return tuple(sorted({layer % depth for layer in layers}))


def queries(model: Any) -> Float[Array, "m q"]:
    """The object queries of an adapted model, without a pass of images; of stages, their sum.

    Raises:
        ConfigError: its tokens are not linked to queries.
    """
    found = [hook.queries() for hook in hooks_of(model) if isinstance(hook, Rein)]
    return functools.reduce(jnp.add, found)
