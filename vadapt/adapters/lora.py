"""LoRA: frozen layers with a trained product of two thin matrices beside them; DoRA too.

Source: arXiv:2106.09685; parts of a fused projection as in its released code, whose convolutions
are `convolutions="released"`. DoRA: arXiv:2402.09353.
"""

from __future__ import annotations

import collections
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vadapt.adapters import surgery
from vadapt.adapters.changed import Changed, change
from vadapt.errors import ConfigError, nearest
from vadapt.nn.drop import OptionalKey, layer_key
from vadapt.nn.drop import dropout as drop
from vadapt.nn.sites import Site
from vadapt.nn.trunk import Trunk
from vadapt.partition import Adapter


class LowRank(nnx.Module):
    """A change of a linear layer, of rank r in each part of its outputs that it acts on.

    Args:
        parts: numbers of the parts that change, out of `num_parts` equal ones; others get zero.
        alpha: the change is `alpha / rank` times the product.
        rate: of dropout on the input, in training.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rank: int,
        *,
        parts: Sequence[int] = (0,),
        num_parts: int = 1,
        alpha: float,
        rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.parts, self.num_parts = tuple(parts), num_parts
        self.scale, self.rate = alpha / rank, rate
        limit = inputs**-0.5  # Kaiming-uniform with a = sqrt(5)
        shape = (len(self.parts), inputs, rank)
        down = jax.random.uniform(rngs.params(), shape, jnp.float32, -limit, limit)
        self.down = Adapter(down)
        self.up = Adapter(jnp.zeros((len(self.parts), rank, outputs // num_parts), jnp.float32))

    def __call__(self, x: Float[Array, "*b i"], key: OptionalKey = None) -> Float[Array, "*b o"]:
        x = drop(x, self.rate, key)
        return self.widen(jnp.einsum("...i,pir->...pr", x, self.down[...]))

    def widen(self, thin: Float[Array, "*b p r"]) -> Float[Array, "*b o"]:
        """The change, of what the thin side of each part gives."""
        return self._placed(self.scale * jnp.einsum("...pr,pro->...po", thin, self.up[...]))

    def matrix(self) -> Float[Array, "i o"]:
        """The change of the kernel, in float32."""
        down, up = (matrix[...].astype(jnp.float32) for matrix in (self.down, self.up))
        return self._placed(self.scale * jnp.einsum("pir,pro->ipo", down, up))

    def _placed(self, change: Float[Array, "*b p o"]) -> Float[Array, "*b n"]:
        """The parts side by side, with zeros for those that stay."""
        return placed(change, self.parts, self.num_parts, jnp.zeros_like(change[..., 0, :]))


def placed(
    chosen: Float[Array, "*b p o"], parts: Sequence[int], num_parts: int, other: Array
) -> Float[Array, "*b n"]:
    """Parts of outputs side by side: the chosen ones, and `other` for each that is not."""
    found = {part: chosen[..., i, :] for i, part in enumerate(parts)}
    return jnp.concatenate([found.get(i, other) for i in range(num_parts)], axis=-1)


class FilterLowRank(nnx.Module):
    """A change of a convolution as LoRA's released code has it: a product of rank r times k.

    The product [out / groups * k, in * k] is read row by row as [out, in / groups, k, k], so that
    it is no low rank of the kernel as a matrix.

    Raises:
        ConfigError: a kernel that is not square.
    """

    parts, num_parts = (0,), 1

    def __init__(
        self, layer: nnx.Conv, rank: int, *, alpha: float, rate: float = 0.0, rngs: nnx.Rngs
    ):
        *sides, inputs, outputs = layer.kernel.shape
        if len(set(sides)) > 1 or len(sides) != 2:
            raise ConfigError(
                f"lora's released convolutions are of square kernels, and this one is of {sides}; "
                "choose convolutions='unfolded'"
            )
        side, groups = sides[0], layer.feature_group_count
        self.scale, self.rate = alpha / rank, rate
        limit = (inputs * groups * side) ** -0.5  # Kaiming-uniform with a = sqrt(5)
        shape = (rank * side, inputs * groups * side)
        self.down = Adapter(jax.random.uniform(rngs.params(), shape, jnp.float32, -limit, limit))
        self.up = Adapter(jnp.zeros((outputs // groups * side, rank * side), jnp.float32))
        self.shape = (outputs, inputs, side, side)

    def matrix(self) -> Float[Array, "i o"]:
        """The change of the kernel, in float32."""
        down, up = (matrix[...].astype(jnp.float32) for matrix in (self.down, self.up))
        filters = (self.scale * (up @ down)).reshape(self.shape)
        return filters.transpose(2, 3, 1, 0).reshape(-1, self.shape[0])


class Layout(NamedTuple):
    """Which axes of a kernel are summed over, and which come out; a matrix has these two sides."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of(cls, layer: Any) -> Layout:
        """The layout of a layer's kernel.

        Raises:
            ConfigError: a kernel that has axes of its batch, and so is no one matrix.
        """
        rank = layer.kernel.ndim
        number, axes = rank - 1, tuple(range(rank))
        if isinstance(layer, nnx.Einsum):
            x, kernel, y = layer.einsum_str.replace(" ", "").replace("->", ",").split(",")
            outputs = tuple(i for i in axes if kernel[i] in y)
            inputs = tuple(i for i in axes if i not in outputs)
            batched = any(kernel[i] in x for i in outputs)
        else:
            batched = bool(getattr(layer, "batch_axis", ()))
            if isinstance(layer, nnx.LinearGeneral):
                number = len(layer.axis)
            inputs, outputs = axes[:number], axes[number:]
        if batched:
            raise ConfigError(
                f"lora: the kernel {layer.kernel.shape} of a {type(layer).__name__} has axes of "
                "its batch; leave this layer out of the targets"
            )
        return cls(inputs, outputs)

    def sizes(self, shape: Sequence[int]) -> tuple[int, int]:
        """Rows and columns of the matrix that a kernel of this shape is."""
        inputs, outputs = (math.prod(shape[i] for i in side) for side in self)
        return inputs, outputs

    def kernel(self, matrix: Float[Array, "i o"], shape: Sequence[int]) -> Float[Array, "*k"]:
        """The matrix as a kernel of this shape."""
        order = (*self.inputs, *self.outputs)
        return matrix.reshape([shape[i] for i in order]).transpose(np.argsort(order))

    def matrix(self, kernel: Float[Array, "*k"]) -> Float[Array, "i o"]:
        """A kernel as the matrix that it is."""
        order = (*self.inputs, *self.outputs)
        return kernel.transpose(order).reshape(self.sizes(kernel.shape))


class Lora(Changed):
    """A layer with a low-rank change beside its frozen kernel, which keeps its path.

    Args:
        lora: of the kernel as a matrix.
        number: of the layer in its block, so that each draws its own dropout.
        dora: what comes out is scaled to a learned length of each column of the changed kernel,
            which starts as that of the frozen one; of linear layers and convolutions.
    """

    method, adds = "lora", ("lora", "magnitude")
    kernel: nnx.Param
    bias: nnx.Param | None

    def __init__(
        self, layer: Any, lora: LowRank | FilterLowRank, number: int = 0, *, dora: bool = False
    ):
        super().__init__(layer)
        self.layout = Layout.of(layer)
        self.lora = lora
        self.number = number
        self.magnitude = Adapter(self._chosen(self._lengths())) if dora else None

    def __call__(self, inputs: Float[Array, "*b"], *args: Any, **kwargs: Any) -> Array:
        key = layer_key(self.number)
        if self.magnitude is None:
            frozen: Any = super().__call__
            return frozen(inputs, *args, **kwargs) + self._change(inputs, key)
        y = self._without_bias()(inputs, *args, **kwargs) + self._change(inputs, key)
        y = y * jnp.broadcast_to(self._ratio().astype(y.dtype), y.shape)
        return y if self.bias is None else y + jnp.broadcast_to(self.bias[...], y.shape)

    def folded(self) -> Any:
        """A plain layer that computes the same, without dropout."""
        plain, kernel = self.plain_layer(), self._changed()
        if self.magnitude is not None:
            kernel = kernel * jnp.broadcast_to(self._ratio(), kernel.shape)
        plain.kernel = nnx.Param(kernel.astype(self.kernel.dtype))
        return plain

    def _changed(self) -> Array:
        """The kernel with its change, in float32."""
        change = self.layout.kernel(self.lora.matrix(), self.kernel.shape)
        return self.kernel[...].astype(jnp.float32) + change

    def _lengths(self) -> Float[Array, " o"]:
        """The length of each column of the changed kernel; no gradient flows through it."""
        columns = self.layout.matrix(jax.lax.stop_gradient(self._changed()))
        return jnp.linalg.norm(columns, axis=0)

    def _chosen(self, row: Float[Array, " o"]) -> Float[Array, "p o2"]:
        """Of numbers for all outputs those of the parts that change."""
        return row.reshape(self.lora.num_parts, -1)[jnp.asarray(self.lora.parts)]

    def _ratio(self) -> Float[Array, " o"]:
        """What each output is multiplied with: its learned length over that of its column."""
        assert self.magnitude is not None
        lengths = self._chosen(self._lengths())
        ratio = self.magnitude[...].astype(jnp.float32) / jnp.maximum(lengths, 1e-30)
        return placed(ratio, self.lora.parts, self.lora.num_parts, jnp.ones_like(ratio[0]))

    def _without_bias(self) -> Any:
        layer = self.plain_layer()
        layer.bias = nnx.data(None)
        if hasattr(layer, "use_bias"):
            layer.use_bias = False
        return layer

    def _change(self, x: Array, key: OptionalKey) -> Array:
        lora, shape = self.lora, self.kernel.shape
        if isinstance(self, nnx.Linear) and isinstance(lora, LowRank):
            return lora(x, key)
        layer, x = self._without_bias(), drop(x, lora.rate, key)
        grouped = getattr(self, "feature_group_count", 1) > 1
        if isinstance(self, nnx.Conv) and isinstance(lora, LowRank) and not grouped:
            thin = lora.down[0].reshape(*shape[:-1], -1)
            layer.kernel, layer.out_features = nnx.Param(thin), thin.shape[-1]
            layer.kernel_shape = thin.shape
            return lora.widen(layer(x)[..., None, :])
        change = self.layout.kernel(lora.matrix(), shape)
        layer.kernel = nnx.Param(change.astype(self.kernel.dtype))
        return layer(x)


CONVOLUTIONS = ("unfolded", "released")


def apply(
    model: Any,
    *,
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = ("q", "v"),
    convolutions: str = "unfolded",
    dora: bool = False,
    rngs: nnx.Rngs | None = None,
) -> Any:
    """Put low-rank changes beside frozen layers; the given model stays as it is.

    The new model computes what the old one did until it is trained. `vadapt.fold` adds the changes
    to the kernels and gives a plain model back.

    Args:
        model: a backbone, of whose blocks the layers are, or any NNX module: Linear,
            LinearGeneral, Einsum and Conv are changed in containers of any kind.
        rank: r in the paper.
        alpha: the change is alpha / rank times the product; by default it is `rank`.
        dropout: rate on what the changes read, in training; of a backbone's blocks alone.
        targets: names of layers ("proj", "fc1", ...), what they do ("mlp_in", or "q", "k", "v" for
            parts of a fused projection), or regular expressions for whole paths, such as
            "stages/./.*conv" (see `surgery.replace`).
        convolutions: what a change of theirs is of rank `rank`: the kernel as a matrix of
            k * k * inputs rows ("unfolded"), or what `FilterLowRank` says ("released").
        dora: learn the length of each column of the kernels besides (arXiv:2402.09353). It starts
            as that of the kernel now: give a model that has its weights.

    Raises:
        ConfigError: a target that is nowhere, a rank below 1, or changes that are there already.

    >>> from vadapt.backbones.vit import vit
    >>> from vadapt.partition import count, split
    >>> model = apply(vit("micro", image_size=64, rngs=nnx.Rngs(0)), rank=4)
    >>> count(split(model).trainable) == 6 * 2 * 4 * (96 + 96)
    True
    """
    if rank < 1:
        raise ConfigError(f"lora needs a rank of at least 1, got {rank}")
    if not targets:
        raise ConfigError("lora needs targets, such as ('q', 'v')")
    if dropout and not isinstance(model, Trunk):
        raise ConfigError(
            f"dropout of lora acts in the blocks of a backbone, and {type(model).__name__} is "
            "none; set dropout=0"
        )
    if convolutions not in CONVOLUTIONS:
        known = nearest(convolutions, CONVOLUTIONS)
        raise ConfigError(f"lora: unknown convolutions {convolutions!r}; {known}")
    rngs = rngs or nnx.Rngs(0)
    numbers: dict[str, Iterator[int]] = collections.defaultdict(itertools.count)
    options = {"alpha": rank if alpha is None else alpha, "rate": dropout, "rngs": rngs}

    def make(site: Site, parts: tuple[int, ...] | None) -> Any:
        layer: Any = site.module
        sizes = Layout.of(layer).sizes(layer.kernel.shape)
        if dora and not isinstance(layer, nnx.Linear | nnx.Conv):
            raise ConfigError(
                f"dora is of linear layers and convolutions, and {site.path} is a "
                f"{type(layer).__name__}; leave this layer out of the targets"
            )
        if isinstance(layer, nnx.Conv) and convolutions == "released":
            lora: Any = FilterLowRank(layer, rank, **options)
        elif parts is None:
            lora = LowRank(*sizes, rank, **options)
        else:
            lora = LowRank(*sizes, rank, parts=parts, num_parts=len(site.roles), **options)
        # Block by block, so that alike blocks stay alike.
        block = re.match(r"(blocks/\d+/|stages/\d+/\d+/)?", site.path)
        assert block is not None
        return change(Lora, layer, lora, next(numbers[block[0]]), dora=dora)

    kinds = ("linear", "conv")
    return surgery.replace(model, targets, make, kinds=kinds, method="lora")
