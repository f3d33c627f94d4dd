"""`group_knn` for TPUs: distances stay on the chip, and so does what is done with them.

A program instance has one image's group of channels and a tile of its targets, which lie along the
lanes; nodes are [channels, nodes] in main memory, where nothing is padded then. Distances to all
sources are products of bfloat16 parts of float32 numbers. The nearest is taken away as often as
there are ranks; its node is read by a product with a one-hot matrix, which is exact.

What libtpu says of the first stage of GKGNet for eight images of 448x448 on a v5e (12544 nodes, 784
sources, 80 channels in two groups, nine neighbours); nothing was run:

    search      61 MB of HBM traffic, 41 at the least; 1100 MB in plain JAX
    messages    9.1 M cycles forward, 3.5 M backward (of the kernels' loops, by their bundles)

Made for chips with 64 MB of vector memory or more (v5e, v5p, v6e), not v4.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from vadapt.kernels.position_bias import PositionBias

LANES = 128
STEP = 2**18  # distances at once
TILES = (512, 384, 256, 128)  # targets at once
CACHE = 2**20  # distances of a tile
VMEM = 64 * 2**20  # bytes that an instance may take
KEPT = 48 * 2**20  # of them, for what it keeps
HUGE = float.fromhex("0x1.ffp127")  # what is as large, rounds to an infinite bfloat16
FARTHEST = float(np.finfo(np.float32).max)  # before what was taken away, which is infinitely far


class Sizes(NamedTuple):
    """Sizes of a program instance, and what it looks for."""

    width: int  # channels of a group, rounded up
    n: int
    m: int
    padded: int  # sources, rounded up
    tile: int
    step: int  # sources at once
    k: int
    dilation: int
    grid_width: int  # of a position bias
    grid_height: int
    interpret: Any  # a CPU's interpreter lacks products of bfloat16


def thirds(x: Array) -> tuple[Array, Array, Array]:
    """Three float32 numbers whose sum is x, exactly; each fits a bfloat16."""

    def top(x: Array) -> Array:  # rounds; a conversion there and back, compilers may leave out
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jnp.uint32(0x8000)
        return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)

    high = top(x)
    middle = top(x - high)
    return high, middle, x - high - middle


def _readable(x: Array) -> Array:
    """[3 w, n] bfloat16 parts, all finite; what is not has the middle part alone: 1, -1 or 2."""
    finite = jnp.abs(x) < HUGE
    high, middle, low = thirds(jnp.where(finite, x, 0.0))
    mark = jnp.where(x > 0, 1.0, jnp.where(x < 0, -1.0, 2.0))
    parts = high, jnp.where(finite, middle, mark), low
    return jnp.concatenate(parts, axis=0).astype(jnp.bfloat16)


def _read(parts: Array) -> Array:
    """Return what `_readable` had been given."""
    w = parts.shape[0] // 3
    high, middle, low = parts[:w], parts[w : 2 * w], parts[2 * w :]
    mark = jnp.where(middle == 2, jnp.nan, middle * jnp.inf)
    return jnp.where((high == 0) & (jnp.abs(middle) >= 1), mark, high + (middle + low))


def _normalised(x: Array) -> Array:
    """Channels along the first axis."""
    norm = jnp.sqrt(jnp.sum(x * x, axis=0, keepdims=True))
    return x / jnp.maximum(norm, 1e-12)


def _factor(x: Array, *, source: bool) -> Array:
    """[6 w + 8, n] bfloat16: one of these times another is -2 x.y + y.y."""
    high, middle, low = thirds(x)
    rows = jax.lax.broadcasted_iota(jnp.int32, (8, x.shape[1]), 0)
    if source:
        squares = thirds(jnp.sum(x * x, axis=0, keepdims=True))
        last = jnp.where(rows == 0, squares[0], jnp.where(rows == 1, squares[1], squares[2]))
        parts = [-2 * part for part in (high, high, high, middle, middle, low)]
    else:
        last = jnp.where(rows < 3, 1.0, 0.0)
        parts = [high, middle, low, high, middle, high]
    return jnp.concatenate([*parts, last], axis=0).astype(jnp.bfloat16)


def _product(sizes: Sizes, x: Array, y: Array, contract: tuple[int, int] = (1, 0)) -> Array:
    if sizes.interpret:
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jax.lax.dot_general(
        x,
        y,
        (((contract[0],), (contract[1],)), ((), ())),
        precision="default",
        preferred_element_type=jnp.float32,
    )


def _chunks(sizes: Sizes, body: Any, start: Any) -> Any:
    """`body` of some sources at a time: their slice, the first of them, and what it gave before."""
    step = sizes.step

    def at(c: Array, carry: Any) -> Any:
        return body(pl.ds(pl.multiple_of(c * step, step), step), c * step, carry)

    return jax.lax.fori_loop(0, sizes.padded // step, at, start)


def _measure(sizes: Sizes, x: Array, bias: Any, factors: Any, far: Any) -> None:
    """Writes all distances of a tile."""
    x = _normalised(x)
    square = jnp.sum(x * x, axis=0, keepdims=True)
    factor = _factor(x, source=False)
    hot = None
    if sizes.grid_width:
        shape = (bias.shape[2], sizes.tile)
        node = pl.program_id(1) * sizes.tile + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        place = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        row = jnp.floor((node.astype(jnp.float32) + 0.5) / sizes.grid_width).astype(jnp.int32)
        column = node - row * sizes.grid_width + sizes.grid_height
        hot = jnp.where((place == row) | (place == column), 1.0, 0.0).astype(jnp.bfloat16)

    def chunk(here: Any, first: Array, carry: None) -> None:
        found = square + _product(sizes, factors[here], factor)
        if hot is not None:
            high, middle, low = (_product(sizes, bias[part, here], hot) for part in range(3))
            found += high + (middle + low)
        elif bias is not None:
            found += bias[here]
        found = jnp.where(jnp.isnan(found), FARTHEST, jnp.minimum(found, FARTHEST))
        source = first + jax.lax.broadcasted_iota(jnp.int32, found.shape, 0)
        far[here] = jnp.where(source < sizes.m, found, jnp.inf)

    _chunks(sizes, chunk, None)


def _next(sizes: Sizes, taken: Array, far: Any, hot: Any) -> tuple[Array, Array]:
    """Takes a source away, notes it in a one-hot matrix, and gives the nearest that is left."""

    places = jax.lax.broadcasted_iota(jnp.int32, (sizes.step, sizes.tile), 0).astype(jnp.float32)

    def chunk(here: Any, first: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        first = first.astype(jnp.float32)
        gone = places == taken - first
        found = jnp.where(gone, jnp.inf, far[here])
        far[here] = found
        if hot is not None:
            hot[here] = jnp.where(gone, 1.0, 0.0).astype(jnp.bfloat16)
        lowest = jnp.min(found, axis=0, keepdims=True)
        place = jnp.min(jnp.where(found == lowest, places, jnp.inf), axis=0, keepdims=True)
        better = lowest < best[1]
        return jnp.where(better, place + first, best[0]), jnp.where(better, lowest, best[1])

    nothing = jnp.zeros((1, sizes.tile)), jnp.full((1, sizes.tile), jnp.inf)
    return _chunks(sizes, chunk, nothing)


def _search(sizes: Sizes, biased: bool, names: tuple[str, ...], *refs: Any) -> None:
    """An instance: for one group's targets of a tile, the outputs that are named."""
    (x_ref, y_ref), refs = refs[:2], refs[2:]
    bias, refs = (refs[0], refs[1:]) if biased else (None, refs)
    outputs = dict(zip(names, refs, strict=False))
    factors, far, *rest = refs[len(names) :]
    fused = "messages" in names
    parts, hot = rest if fused else (None, None)

    @pl.when(pl.program_id(1) == 0)
    def _sources() -> None:
        def chunk(here: Any, first: Array, carry: None) -> None:
            y = y_ref[0, :, here].astype(jnp.float32)
            rows = _factor(_normalised(y), source=True).astype(jnp.float32)
            factors[here] = rows.T.astype(jnp.bfloat16)
            if parts is not None:
                parts[:, here] = _readable(y)

        _chunks(sizes, chunk, None)

    x = x_ref[0].astype(jnp.float32)
    _measure(sizes, x, bias, factors, far)

    def rank(number: Array, carry: Any) -> Any:
        (place, distance), most, winner = carry
        outputs["ids"][0, pl.ds(number, 1)] = place.astype(jnp.int32)
        if "distances" in names:
            distance = jnp.where(distance < FARTHEST, distance, jnp.inf)
            outputs["distances"][0, pl.ds(number, 1)] = distance
        after = _next(sizes, place, far, hot)
        if parts is not None and hot is not None:
            value = _read(_product(sizes, parts[...], hot[...]))
            better = (value > most) | (jnp.isnan(value) & ~jnp.isnan(most))
            most, winner = jnp.where(better, value, most), jnp.where(better, number, winner)
        after = jax.lax.fori_loop(
            1, sizes.dilation, lambda _, found: _next(sizes, found[0], far, None), after
        )
        return after, most, winner

    nearest = _next(sizes, jnp.full((1, sizes.tile), -1.0), far, None)
    most = jnp.full(x.shape if fused else (8, LANES), -jnp.inf)
    carry = nearest, most, jnp.zeros(most.shape, jnp.int32)
    _, most, winner = jax.lax.fori_loop(0, sizes.k, rank, carry)
    if fused:
        outputs["messages"][0] = (most - x).astype(outputs["messages"].dtype)
    if "winners" in names:
        outputs["winners"][0] = winner.astype(jnp.uint8)


@functools.partial(jax.jit, static_argnames=("options", "names", "interpret"))
def search(
    targets: Array,
    sources: Array,
    bias: Any,
    *,
    options: Any,
    names: tuple[str, ...],
    interpret: Any = False,
) -> tuple[Array, ...]:
    """Return what is named of ids, distances, messages and winners; ids always are."""
    groups = options.groups
    sizes = _sizes(targets, sources.shape[1], bias, options, interpret)
    n, m, w = sizes.padded, sizes.tile, sizes.width
    y = _laid(sources, groups)
    arrays = [_laid(targets, groups), jnp.pad(y, ((0, 0), (0, 0), (0, sizes.padded - sizes.m)))]
    specs = [_tiles(sizes, w), pl.BlockSpec((1, w, sizes.padded), lambda i, t: (i, 0, 0))]
    if bias is not None:
        arrays.append(_bias(bias, sizes))
        factors = pl.BlockSpec(arrays[2].shape, lambda i, t: (0, 0, 0))
        matrix = pl.BlockSpec((sizes.padded, sizes.tile), lambda i, t: (0, t))
        specs.append(factors if sizes.grid_width else matrix)
    rows = {
        "ids": (sizes.k, jnp.int32),
        "distances": (sizes.k, jnp.float32),
        "messages": (w, targets.dtype),
        "winners": (w, jnp.uint8),
    }
    scratch = [pltpu.VMEM((n, 6 * w + 8), jnp.bfloat16), pltpu.VMEM((n, m), jnp.float32)]
    if "messages" in names:
        scratch += [pltpu.VMEM((3 * w, n), jnp.bfloat16), pltpu.VMEM((n, m), jnp.bfloat16)]
    found = _call(
        functools.partial(_search, sizes, bias is not None, names),
        sizes,
        arrays,
        in_specs=specs,
        out_specs=[_tiles(sizes, rows[name][0]) for name in names],
        outputs=[(rows[name][0], sizes.n, rows[name][1]) for name in names],
        scratch=scratch,
    )
    by_rank = "(b g) k n -> b g n k"
    return tuple(
        _unlaid(x, groups, targets.shape[2])
        if name in ("messages", "winners")
        else rearrange(x, by_rank, g=groups)
        for name, x in zip(names, found, strict=True)
    )


def _spread(sizes: Sizes, x_ref: Any, ids: Any, winners: Any, y_ref: Any) -> None:
    """An instance: adds the gradients of a tile's targets to those of the sources."""

    @pl.when(pl.program_id(1) == 0)
    def _zero() -> None:
        y_ref[...] = jnp.zeros(y_ref.shape, y_ref.dtype)

    x = x_ref[0].astype(jnp.float32)
    node = pl.program_id(1) * sizes.tile + jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    x, winner = jnp.where(node < sizes.n, x, 0.0), winners[0].astype(jnp.int32)
    places = jax.lax.broadcasted_iota(jnp.int32, (sizes.step, sizes.tile), 0)

    def rank(number: Array, carry: None) -> None:
        mine = jnp.concatenate(thirds(jnp.where(winner == number, x, 0.0)), axis=0)
        mine = mine.astype(jnp.bfloat16)
        place = ids[0, pl.ds(number, 1)]

        def chunk(here: Any, first: Array, carry: None) -> None:
            hot = jnp.where(places == place - first, 1.0, 0.0).astype(jnp.bfloat16)
            found = _product(sizes, mine, hot, contract=(1, 1))
            high, middle, low = jnp.split(found, 3, axis=0)
            y_ref[0, :, here] += high + (middle + low)

        _chunks(sizes, chunk, None)

    jax.lax.fori_loop(0, sizes.k, rank, None)


@functools.partial(jax.jit, static_argnames=("options", "interpret"))
def spread(
    cotangents: Array, ids: Array, winners: Array, *, options: Any, interpret: Any = False
) -> Array:
    """The gradient of the sources. One that is not finite spreads over a group's channel."""
    groups, m = options.groups, options.num_sources
    sizes = _sizes(cotangents, m, None, options, interpret)
    ids = rearrange(ids, "b g n k -> (b g) k n")
    x, winners = _laid(cotangents, groups), _laid(winners, groups)
    (found,) = _call(
        functools.partial(_spread, sizes),
        sizes,
        [x, ids, winners],
        in_specs=[_tiles(sizes, sizes.width), _tiles(sizes, sizes.k), _tiles(sizes, sizes.width)],
        out_specs=[pl.BlockSpec((1, sizes.width, sizes.padded), lambda i, t: (i, 0, 0))],
        outputs=[(sizes.width, sizes.padded, jnp.float32)],
    )
    return _unlaid(found[..., :m], groups, cotangents.shape[2]).astype(options.dtype)


def _call(kernel: Any, sizes: Sizes, arrays: Any, *, outputs: Any, scratch: Any = (), **specs: Any):
    """The kernel for all groups of images, and all tiles of their targets."""
    groups = arrays[0].shape[0]
    shapes = [jax.ShapeDtypeStruct((groups, *shape), dtype) for *shape, dtype in outputs]
    return pl.pallas_call(
        kernel,
        grid=(groups, pl.cdiv(sizes.n, sizes.tile)),
        out_shape=shapes,
        cost_estimate=pl.CostEstimate(
            flops=2 * groups * sizes.n * sizes.m * sizes.width,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *shapes)),
            transcendentals=0,
        ),
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=VMEM
        ),
        interpret=sizes.interpret,
        **specs,
    )(*arrays)


def _sizes(targets: Array, m: int, bias: Any, options: Any, interpret: Any) -> Sizes:
    n, c = targets.shape[1:]
    padded = -(-m // LANES) * LANES
    tiles = [tile for tile in TILES if tile * padded <= CACHE] or [LANES]
    tile = min(tiles, key=lambda tile: -(-n // tile) * tile)
    steps = [LANES * i for i in range(1, padded // LANES + 1) if padded % (LANES * i) == 0]
    step = max(step for step in steps if step * tile <= max(STEP, LANES * tile))
    h, w = (bias.rows.size, bias.columns.size) if isinstance(bias, PositionBias) else (0, 0)
    width = -(-c // options.groups // 8) * 8
    return Sizes(width, n, m, padded, tile, step, options.k, options.dilation, w, h, interpret)


def _laid(nodes: Array, groups: int) -> Array:
    """[b g, w, n], with channels of zero up to a multiple of eight."""
    nodes = rearrange(nodes, "b n (g w) -> (b g) w n", g=groups)
    return jnp.pad(nodes, ((0, 0), (0, -nodes.shape[1] % 8), (0, 0)))


def _unlaid(nodes: Array, groups: int, channels: int) -> Array:
    nodes = nodes[:, : channels // groups]
    return rearrange(nodes, "(b g) w n -> b n (g w)", g=groups)


def _tiles(sizes: Sizes, rows: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, rows, sizes.tile), lambda i, t: (i, 0, t))


def _bias(bias: Any, sizes: Sizes) -> Array:
    """Thirds of the factors [3, m, h + w] (bfloat16), or the matrix [m, n]."""
    if not isinstance(bias, PositionBias):
        bias = bias.astype(jnp.float32).T
        return jnp.pad(bias, ((0, sizes.padded - sizes.m), (0, 0)))
    factor = jnp.concatenate(bias.factors(), axis=0).T
    missing = (0, sizes.padded - sizes.m), (0, -factor.shape[1] % 16)
    return jnp.stack(thirds(jnp.pad(factor, missing))).astype(jnp.bfloat16)


def fits(num_sources: int, width: int) -> bool:
    """Whether what an instance keeps of so many sources does; 27,000 of 40 channels do."""
    padded, width = -(-num_sources // LANES) * LANES, -(-width // 8) * 8
    tile = max(LANES, min(max(TILES), CACHE // padded))
    return padded * (6 * tile + 26 * width + 16) <= KEPT
