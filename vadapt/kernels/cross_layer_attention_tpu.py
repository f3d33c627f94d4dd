"""Cross-layer attention in space for TPUs: maps are read once, and no window leaves the chip.

A program instance has a row of cells of one image. Windows pass one after another, with tokens
along the lanes: sums over channels and over keys are then those of registers. The backward pass
needs nothing but the maps and the cotangent: it takes logits and softmax again.

What libtpu says of CFPT at 832x1344 on a v5e (64 channels, four heads, float32); nothing was run:

    forward     34.8 MiB of HBM traffic, 22.7 at the least; 380 in plain JAX
    backward    58.1 MiB, 39.7 at the least; 793 in plain JAX
    forward     0.24 M cycles (of the loops, by their bundles), 0.18 of them of windows
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from vadapt.kernels import window_tokens_tpu as windows

DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))
VMEM = 64 * 2**20  # bytes that an instance may take
ROOM = 48 * 2**20  # of these what is planned for
ARRAYS = 10  # as large as all heads' logits, that the compiler has at once; the bias among them
LEAST = 1e-24  # square of a norm
NEVER = -1e30  # a logit

Maps = tuple[Array, ...]


class Sizes(NamedTuple):
    """Sizes of a call."""

    cells: windows.Cells
    batch: int
    heads: int
    hidden: int
    dtype: Any
    interpret: Any

    @property
    def own(self) -> list[slice]:
        """Each head's channels."""
        width = self.hidden // self.heads
        return [slice(head * width, (head + 1) * width) for head in range(self.heads)]


def fits(maps: Sequence[Any], heads: int) -> bool:
    """Whether cells fill all levels, and an instance holds a row of them."""
    if maps[0].dtype not in DTYPES or len({x.dtype for x in maps}) > 1:
        return False
    shape = maps[-1].shape
    if not all(isinstance(size, int) and size for x in maps for size in x.shape):
        return False
    for i, x in enumerate(reversed(maps)):
        if x.shape[1:3] != (shape[1] << i, shape[2] << i):
            return False
    return _room(_sizes(maps, heads, False)) <= ROOM


def attend(maps: Maps, bias: Array, interpret: Any = False) -> Maps:
    """Return what `kernels.cross_layer_attention.spatial_attention` does, of an overlap of one."""
    sizes = _sizes(maps, len(bias), interpret)
    return tuple(_call(_forward, sizes, [maps], sizes.hidden, bias))


def gradients(maps: Maps, bias: Array, ways: Maps, interpret: Any = False) -> tuple[Maps, Array]:
    """The gradients of maps and bias, by those of what `attend` gives."""
    sizes = _sizes(maps, len(bias), interpret)
    *found, dbias = _call(_backward, sizes, [maps, ways], 3 * sizes.hidden, bias, gradient=True)
    n = sizes.cells.tokens
    dbias = jnp.swapaxes(jnp.sum(dbias, axis=0), 1, 2)[:, :n, :n]
    return tuple(found), dbias.astype(bias.dtype)


def _forward(sizes: Sizes, refs: Any) -> None:
    maps, bias, outputs, (row, tokens, new, last) = _given(sizes, refs, 1)
    cells, step = sizes.cells, pl.program_id(1)

    def window(here: Any) -> None:
        q, k, v = jnp.split(windows.read(tokens, here, 3 * sizes.hidden).T, 3, axis=0)
        (q, _), (k, _) = _unit(sizes, q), _unit(sizes, k)
        keys, found = k.T, []
        for head, own in enumerate(sizes.own):
            shares, total = _shares(sizes, _masked(keys, own), q, bias[head])
            found.append(_product(sizes, v[own], shares, (1, 0)) / total)
        windows.write(new, here, jnp.concatenate(found, axis=0).T)

    @pl.when(step < cells.rows)
    def _attend() -> None:
        windows.unfold(cells, step, maps[0], row, tokens)
        cells.each(window)

    windows.fold(cells, step, new, last, row, outputs)


def _backward(sizes: Sizes, refs: Any) -> None:
    maps, bias, (*outputs, dbias), rest = _given(sizes, refs, 2)
    row, tokens, ways, new, last = rest
    cells, step = sizes.cells, pl.program_id(1)

    @pl.when(step == 0)
    def _start() -> None:
        dbias[...] = jnp.zeros(dbias.shape, dbias.dtype)

    def window(here: Any) -> None:
        q, k, v = jnp.split(windows.read(tokens, here, 3 * sizes.hidden).T, 3, axis=0)
        way = windows.read(ways, here, sizes.hidden).T
        (q, pull_q), (k, pull_k) = _unit(sizes, q), _unit(sizes, k)
        keys, values = k.T, v.T
        dq, dk, dv = [], [], []
        for head, own in enumerate(sizes.own):
            shares, total = _shares(sizes, _masked(keys, own), q, bias[head])
            shares = shares * (1 / total)
            dshares = _product(sizes, _masked(values, own), way, (1, 0))
            dlogits = shares * (dshares - jnp.sum(shares * dshares, axis=0, keepdims=True))
            dbias[0, head] += dlogits
            dq.append(_product(sizes, k[own], dlogits, (1, 0)))
            dk.append(_product(sizes, q[own], dlogits, (1, 1)))
            dv.append(_product(sizes, way[own], shares, (1, 1)))
        parts = (jnp.concatenate(heads, axis=0) for heads in (dq, dk, dv))
        pulled = [pull(x) for pull, x in zip((pull_q, pull_k, lambda x: x), parts, strict=True)]
        windows.write(new, here, jnp.concatenate(pulled, axis=0).T)

    @pl.when(step < cells.rows)
    def _attend() -> None:
        windows.unfold(cells, step, maps[0], row, tokens)
        windows.unfold(cells, step, maps[1], row, ways)
        cells.each(window)

    windows.fold(cells, step, new, last, row, outputs)


def _given(sizes: Sizes, refs: Any, kinds: int) -> tuple[Any, Any, Any, Any]:
    """Maps of all levels of each kind, the bias, outputs, and memory to work in."""
    levels = len(sizes.cells.levels)
    maps = [refs[i * levels : (i + 1) * levels] for i in range(kinds)]
    bias, *rest = refs[kinds * levels :]
    outputs = levels + kinds - 1  # that of the bias is the last
    return maps, bias, rest[:outputs], rest[outputs:]


def _masked(x: Array, own: slice) -> Array:
    """[tokens, hidden], zero but for a head's channels: all others drop out of products."""
    channel = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.where((channel >= own.start) & (channel < own.stop), x, 0.0)


def _unit(sizes: Sizes, x: Array) -> tuple[Array, Callable[[Array], Array]]:
    """[hidden, tokens], each head's channels at norm 1; and what makes their gradient one of x."""

    def summed(x: Array) -> Array:
        """A head's sum, at each of its channels."""
        parts = [x[own] for own in sizes.own]
        sums = [jnp.broadcast_to(jnp.sum(x, axis=0, keepdims=True), x.shape) for x in parts]
        return jnp.concatenate(sums, axis=0)

    squares = summed(x * x)
    factor = jax.lax.rsqrt(jnp.maximum(squares, LEAST))
    unit = x * factor

    def pull(way: Array) -> Array:
        return factor * (way - jnp.where(squares > LEAST, unit * summed(way * unit), 0.0))

    return unit, pull


def _shares(sizes: Sizes, keys: Array, queries: Array, bias: Array) -> tuple[Array, Array]:
    """A head's softmax before it is divided by its sums, [keys, queries]; and these, [1, queries].

    No largest logit is looked for: cosines are 1 at the most, and the bias had its own taken away.
    """
    shares = jnp.exp(_product(sizes, keys, queries, (1, 0)) + bias)
    return shares, jnp.sum(shares, axis=0, keepdims=True)


def _product(sizes: Sizes, x: Array, y: Array, contract: tuple[int, int]) -> Array:
    """Of numbers as exact as the maps, summed in float32."""
    half = sizes.dtype != jnp.float32
    if half:
        x, y = x.astype(sizes.dtype), y.astype(sizes.dtype)
        if sizes.interpret:  # CPUs lack products of bfloat16
            x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jax.lax.dot_general(
        x,
        y,
        (((contract[0],), (contract[1],)), ((), ())),
        # Products of bfloat16 are exact; Mosaic refuses to be asked for that.
        precision=jax.lax.Precision.DEFAULT if half else None,
        preferred_element_type=jnp.float32,
    )


def _call(
    kernel: Any,
    sizes: Sizes,
    inputs: list[Maps],
    channels: int,
    bias: Array,
    *,
    gradient: bool = False,
) -> Any:
    """The kernel for all rows of cells; of the last, there is one instance more to write it.

    Args:
        inputs: maps of all levels, of one kind or two.
        channels: of the maps that are made.
        gradient: whether that of the bias is made, too, for each image.
    """
    cells, near = sizes.cells, _bias(sizes, bias)
    made = [jax.ShapeDtypeStruct((*x.shape[:3], channels), sizes.dtype) for x in inputs[0]]
    in_specs = [spec for maps in inputs for spec in _rows(cells, maps, late=False)]
    in_specs.append(pl.BlockSpec(near.shape, lambda image, step: (0, 0, 0)))
    out_specs = _rows(cells, made, late=True)
    if gradient:
        made.append(jax.ShapeDtypeStruct((sizes.batch, *near.shape), jnp.float32))
        out_specs.append(pl.BlockSpec((1, *near.shape), lambda image, step: (image, 0, 0, 0)))
    arrays = [x for maps in inputs for x in maps] + [near]
    widths = [maps[0].shape[3] for maps in inputs] + [channels, channels]
    tokens = cells.columns * cells.padded
    logits = sizes.batch * cells.rows * cells.columns * cells.tokens**2
    return pl.pallas_call(
        lambda *refs: kernel(sizes, refs),
        grid=(sizes.batch, cells.rows + 1),
        in_specs=in_specs,
        out_specs=out_specs,
        out_shape=made,
        scratch_shapes=[
            pltpu.VMEM((cells.levels[0].width, windows.LANES), jnp.float32),
            *(
                pltpu.VMEM((windows.planes(width), tokens, windows.LANES), jnp.float32)
                for width in widths
            ),
        ],
        cost_estimate=pl.CostEstimate(
            flops=2 * (5 if gradient else 2) * logits * sizes.hidden,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *made)),
            transcendentals=logits * sizes.heads,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM
        ),
        interpret=sizes.interpret,
    )(*arrays)


def _rows(cells: windows.Cells, maps: Sequence[Any], *, late: bool) -> list[pl.BlockSpec]:
    """A row of cells of each level; late, that of the instance before."""

    def index(image: Any, step: Any) -> tuple[Any, ...]:
        return image, jnp.clip(step - int(late), 0, cells.rows - 1), 0, 0

    pairs = zip(cells.levels, maps, strict=True)
    return [pl.BlockSpec((1, level.r, *x.shape[2:]), index) for level, x in pairs]


def _bias(sizes: Sizes, bias: Array) -> Array:
    """[heads, keys, queries] float32, by which no logit is positive; pads are never keys."""
    bias = jnp.swapaxes(bias.astype(jnp.float32), 1, 2)
    bias = bias - jnp.max(bias, axis=1, keepdims=True) - 1
    missing = (0, sizes.cells.padded - sizes.cells.tokens)
    bias = jnp.pad(bias, ((0, 0), (0, 0), missing))
    return jnp.pad(bias, ((0, 0), missing, (0, 0)), constant_values=NEVER)


def _sizes(maps: Sequence[Any], heads: int, interpret: Any) -> Sizes:
    batch, _, _, channels = maps[0].shape
    cells = windows.cells_of(maps)
    return Sizes(cells, batch, heads, channels // 3, maps[0].dtype, interpret)


def _room(sizes: Sizes) -> int:
    """Bytes that an instance takes on the way back.

    Tokens of maps and cotangents, and twice of gradients; two blocks of each of these; a level's
    row; and arrays as large as all heads' logits.
    """
    cells = sizes.cells
    wide, narrow = (windows.planes(n * sizes.hidden) * windows.LANES for n in (3, 1))
    tokens = cells.columns * cells.padded * (3 * wide + narrow)
    places = sum(level.r * -(-level.width // 16) * 16 for level in cells.levels)
    blocks = 2 * places * (2 * wide + narrow) * sizes.dtype.itemsize
    lanes = windows.planes(cells.padded) * windows.LANES
    logits = ARRAYS * sizes.heads * cells.padded * lanes
    return 4 * (tokens + cells.levels[0].width * windows.LANES + logits) + blocks
