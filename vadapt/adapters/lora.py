"""LoRA: frozen linear layers with a trained product of two thin matrices beside them.

Source: arXiv:2106.09685; parts of a fused projection as in its released code.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vadapt.errors import ConfigError, nearest
from vadapt.nn.blocks import Branch
from vadapt.nn.drop import OptionalKey, dropout, split_key
from vadapt.partition import Adapter

# Projections that models have in one piece, and what the parts of their outputs are.
FUSED: dict[str, tuple[str, ...]] = {"qkv": ("q", "k", "v"), "kv": ("k", "v")}

# The key of the branch that is being computed: the modules between it and its layers know of none.
_key: contextvars.ContextVar[OptionalKey] = contextvars.ContextVar("key", default=None)


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
        x = dropout(x, self.rate, key)
        thin = jnp.einsum("...i,pir->...pr", x, self.down[...])
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


class LoraLinear(nnx.Linear):
    """A linear layer with a low-rank change beside its frozen kernel, which keeps its path.

    Args:
        number: of the layer among those of its branch, so that each draws its own dropout.
    """

    def __init__(self, linear: nnx.Linear, lora: LowRank, number: int = 0):
        _copy_fields(linear, self)
        self.lora = lora
        self.number = number

    def __call__(self, inputs: Float[Array, "*b i"], out_sharding: Any = None) -> Array:
        key = _key.get()
        key = None if key is None else jax.random.fold_in(key, self.number)
        return super().__call__(inputs, out_sharding) + self.lora(inputs, key)

    def folded(self) -> nnx.Linear:
        """A plain layer that computes the same, without dropout."""
        plain = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
        _copy_fields(self, plain, but=("lora", "number"))
        kernel = self.kernel[...]
        changed = kernel.astype(jnp.float32) + self.lora.matrix()
        plain.kernel = nnx.Param(changed.astype(kernel.dtype))
        return plain


class LoraBranch(Branch):
    """A branch that tells the changed layers inside it what to draw their dropout from."""

    def __init__(self, branch: Branch):
        super().__init__(
            branch.norm, branch.inner, scale=branch.scale, drop_path_rate=branch.drop_path_rate
        )

    def __call__(self, x: Float[Array, "b n d"], key: OptionalKey = None) -> Float[Array, "b n d"]:
        path_key, lora_key = split_key(key, 2)
        with _drawing(lora_key):
            y = self.compute(x)
        return self.finish(y, path_key)

    def folded(self) -> Branch:
        return Branch(self.norm, self.inner, scale=self.scale, drop_path_rate=self.drop_path_rate)


def apply(
    model: Any,
    *,
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] = ("q", "v"),
    rngs: nnx.Rngs | None = None,
) -> Any:
    """Grafts low-rank changes beside linear layers of every block; the given model stays as is.

    The new model computes what the old one did until it is trained. `vadapt.fold` adds the changes
    to the kernels and gives a plain model back.

    Args:
        model: anything with `blocks` that hold linear layers.
        rank: r in the paper.
        alpha: the change is alpha / rank times the product; by default it is `rank`.
        dropout: rate on what the changes read, in training.
        targets: names of layers ("proj", "fc1", ...), or "q", "k", "v" for parts of a fused `qkv`.

    Raises:
        ConfigError: a target that no block has, a rank below 1, or changes grafted before.

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
    alpha = rank if alpha is None else alpha
    rngs = rngs or nnx.Rngs(0)
    model = nnx.clone(model)
    blocks = getattr(model, "blocks", ())
    found: set[str] = set()
    for block in blocks:
        for number, (owner, name, linear) in enumerate(list(_linears(block))):
            if isinstance(linear, LoraLinear):
                raise ConfigError("the model already has LoRA; adapt the model without it")
            found |= {name, *FUSED.get(name, ())}
            parts, num_parts = _parts(name, targets)
            if not parts:
                continue
            lora = LowRank(
                *linear.kernel.shape,
                rank=rank,
                parts=parts,
                num_parts=num_parts,
                alpha=alpha,
                rate=dropout,
                rngs=rngs,
            )
            setattr(owner, name, LoraLinear(linear, lora, number))
        if dropout:
            _pass_keys(block)
    unknown = [target for target in targets if target not in found]
    if unknown:
        raise ConfigError(
            f"lora: {unknown} of the targets are no linear layers in the `blocks` of "
            f"{type(model).__name__}; {nearest(unknown[0], found)}"
        )
    return model


def _linears(block: Any) -> Iterator[tuple[Any, str, nnx.Linear]]:
    """Every frozen linear layer of a block: its owner, its name there, itself."""
    for _, node in nnx.iter_graph(block):
        if not isinstance(node, nnx.Module):
            continue
        for name, child in vars(node).items():
            if isinstance(child, nnx.Linear) and type(child.kernel) is nnx.Param:
                yield node, name, child


def _parts(name: str, targets: Sequence[str]) -> tuple[tuple[int, ...], int]:
    """Which parts of a layer's outputs change, and of how many."""
    if name in targets:
        return (0,), 1
    parts = FUSED.get(name, ())
    return tuple(i for i, part in enumerate(parts) if part in targets), max(len(parts), 1)


def _pass_keys(block: Any) -> None:
    for name, branch in list(vars(block).items()):
        changed = isinstance(branch, Branch) and any(
            isinstance(linear, LoraLinear) for _, _, linear in _linears(branch)
        )
        if changed and type(branch) is not Branch:
            raise ConfigError(
                f"dropout of lora needs plain branches, {name!r} is a {type(branch).__name__}; "
                "set dropout=0, or graft lora first"
            )
        if changed:
            setattr(block, name, LoraBranch(branch))


@contextlib.contextmanager
def _drawing(key: OptionalKey) -> Iterator[None]:
    token = _key.set(key)
    try:
        yield
    finally:
        _key.reset(token)


def _copy_fields(source: nnx.Linear, target: nnx.Linear, but: Sequence[str] = ()) -> None:
    """What makes a linear layer, its variables shared; private fields are flax's own."""
    for name, value in vars(source).items():
        if not name.startswith("_") and name not in but:
            setattr(target, name, nnx.data(value) if value is None else value)
