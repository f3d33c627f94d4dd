"""LoRA: frozen layers with a trained product of two thin matrices beside them.

Source: arXiv:2106.09685; parts of a fused projection, and convolutions, as in its released code.
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
from vadapt.errors import ConfigError
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
        zeros = jnp.zeros_like(change[..., 0, :])
        found = {part: change[..., i, :] for i, part in enumerate(self.parts)}
        return jnp.concatenate([found.get(i, zeros) for i in range(self.num_parts)], axis=-1)


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


class Lora(Changed):
    """A layer with a low-rank change beside its frozen kernel, which keeps its path.

    Args:
        lora: of the kernel as a matrix.
        number: of the layer in its block, so that each draws its own dropout.
    """

    method, adds = "lora", ("lora",)
    kernel: nnx.Param

    def __init__(self, layer: Any, lora: LowRank, number: int = 0):
        super().__init__(layer)
        self.layout = Layout.of(layer)
        self.lora = lora
        self.number = number

    def __call__(self, inputs: Float[Array, "*b"], *args: Any, **kwargs: Any) -> Array:
        frozen: Any = super().__call__
        key = layer_key(self.number)
        return frozen(inputs, *args, **kwargs) + self._change(inputs, key)

    def folded(self) -> Any:
        """A plain layer that computes the same, without dropout."""
        plain, kernel = self.plain_layer(), self.kernel[...]
        change = self.layout.kernel(self.lora.matrix(), kernel.shape)
        plain.kernel = nnx.Param((kernel.astype(jnp.float32) + change).astype(kernel.dtype))
        return plain

    def _change(self, x: Array, key: OptionalKey) -> Array:
        lora, shape = self.lora, self.kernel.shape
        if isinstance(self, nnx.Linear):
            return lora(x, key)
        layer, x = self.plain_layer(), drop(x, lora.rate, key)
        layer.bias = nnx.data(None)
        if isinstance(layer, nnx.Conv):
            layer.use_bias = False
        if isinstance(self, nnx.Conv) and self.feature_group_count == 1:
            thin = lora.down[0].reshape(*shape[:-1], -1)
            layer.kernel, layer.out_features = nnx.Param(thin), thin.shape[-1]
            layer.kernel_shape = thin.shape
            return lora.widen(layer(x)[..., None, :])
        change = self.layout.kernel(lora.matrix(), shape)
        layer.kernel = nnx.Param(change.astype(self.kernel.dtype))
        return layer(x)


def apply(
    model: Any,
    *,
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = ("q", "v"),
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
    rngs = rngs or nnx.Rngs(0)
    numbers: dict[str, Iterator[int]] = collections.defaultdict(itertools.count)
    alpha = rank if alpha is None else alpha

    def make(site: Site, parts: tuple[int, ...] | None) -> Any:
        layer: Any = site.module
        lora = LowRank(
            *Layout.of(layer).sizes(layer.kernel.shape),
            rank=rank,
            parts=(0,) if parts is None else parts,
            num_parts=1 if parts is None else len(site.roles),
            alpha=alpha,
            rate=dropout,
            rngs=rngs,
        )
        # Block by block, so that alike blocks stay alike.
        block = re.match(r"(blocks/\d+/|stages/\d+/\d+/)?", site.path)
        assert block is not None
        return change(Lora, layer, lora, next(numbers[block[0]]))

    kinds = ("linear", "conv")
    return surgery.replace(model, targets, make, kinds=kinds, method="lora")
