"""Attention for TPUs: whole rows of logits stay on the chip, forward and backward.

A program instance has some heads of one or several images and a tile of their queries, with all of
their keys; heads lie side by side along the lanes, as a projection leaves them. A row of logits is
whole, so that its softmax is exact, and the backward pass needs nothing but queries, keys, values
and the cotangent: it takes logits and softmax again.

A bias is shared by all images: an instance's part of it stays on the chip while these pass, and so
does its gradient.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

LANES = 128
ROWS = 32  # of a tile of memory, of bytes; 16 of bfloat16
VMEM = 64 * 2**20  # bytes that an instance may take
LOGITS = 5 * 2**18  # of a head at once; half as many of float32, or beside a bias
ROOM = 56 * 2**20  # of these what is planned for; beside other steps the compiler takes more
ARRAYS = 5  # of float32 as large as a head's logits, that the compiler has at once
SHORT = 512  # queries of several images at once
MOST_IMAGES = 8
MASKED = float(jnp.finfo(jnp.float32).min)


class Sizes(NamedTuple):
    """Sizes of a call, and of its program instances."""

    scale: float
    batch: int
    q: int
    k: int
    heads: int
    images: int  # of an instance, as all that follows
    tile: int  # queries
    keys: int  # rounded up
    group: int  # heads
    biased: bool
    masked: bool
    interpret: Any

    @property
    def tiles(self) -> int:
        return pl.cdiv(self.q, self.tile)

    @property
    def grid(self) -> tuple[int, ...]:
        """Images pass last where a bias stays; else tiles, which add to gradients of keys."""
        images, groups = self.batch // self.images, self.heads // self.group
        return (groups, self.tiles, images) if self.biased else (images, groups, self.tiles)

    def place(self, *grid: Any) -> tuple[Any, Any, Any]:
        """(images, heads, tile) of an instance."""
        return (grid[2], grid[0], grid[1]) if self.biased else grid


def fits(queries: Array, keys: Array, values: Array, bias: Any, mask: Any) -> bool:
    """Whether an instance can hold all keys."""
    if not (queries.shape[1] and keys.shape[1]):
        return False
    sizes = _sizes(queries, keys, values, bias, mask, 1.0, False)
    return _room(sizes, queries, values) <= ROOM


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def attend(
    queries: Array, keys: Array, values: Array, bias: Any, mask: Any, scale: float, interpret: Any
) -> Array:
    """Return what `kernels.attention.attention` does; of mask, 0 where it is False."""
    sizes = _sizes(queries, keys, values, bias, mask, scale, interpret)
    arrays = [_flat(x) for x in (queries, keys, values)]
    out = jax.ShapeDtypeStruct((*arrays[0].shape[:2], arrays[2].shape[2]), queries.dtype)
    specs = [_of_queries(sizes, arrays[0]), *(_of_keys(sizes, x) for x in arrays[1:])]
    (found,) = _call(
        _forward, sizes, arrays, specs, bias, mask, [out], [_of_queries(sizes, out)], products=2
    )
    return found.reshape(*queries.shape[:3], values.shape[3])


def _attend_forward(
    queries: Array, keys: Array, values: Array, bias: Any, mask: Any, scale: float, interpret: Any
) -> Any:
    kept = queries, keys, values, bias, mask
    return attend(*kept, scale, interpret), kept


def _attend_backward(scale: float, interpret: Any, kept: Any, cotangent: Array) -> Any:
    queries, keys, values, bias, mask = kept
    sizes = _sizes(queries, keys, values, bias, mask, scale, interpret)
    arrays = [_flat(x) for x in (queries, keys, values, cotangent)]
    # Where images pass last, each tile has gradients of keys of its own.
    parts = sizes.tiles if sizes.biased else 1
    kind = jnp.float32 if parts > 1 else queries.dtype
    q, k, v, do = arrays
    outputs = [jax.ShapeDtypeStruct(q.shape, q.dtype)]
    outputs += [jax.ShapeDtypeStruct((parts, *x.shape), kind) for x in (k, v)]
    out_specs = [_of_queries(sizes, q), *(_of_keys(sizes, x, parts=True) for x in (k, v))]
    if sizes.biased:
        outputs.append(jax.ShapeDtypeStruct((1, *bias.shape), jnp.float32))
        out_specs.append(_of_bias(sizes, lead=True))
    specs = [_of_queries(sizes, q), _of_keys(sizes, k), _of_keys(sizes, v), _of_queries(sizes, do)]
    scratch = [] if sizes.tiles == parts else [_sums(sizes, x) for x in (k, v)]
    dq, dk, dv, *rest = _call(
        _backward, sizes, arrays, specs, bias, mask, outputs, out_specs, scratch, products=5
    )
    dk, dv = (jnp.sum(x, axis=0).astype(q.dtype) if parts > 1 else x[0] for x in (dk, dv))
    dbias = rest[0][0].astype(bias.dtype) if sizes.biased else None
    return dq.reshape(queries.shape), dk.reshape(keys.shape), dv.reshape(values.shape), dbias, None


attend.defvjp(_attend_forward, _attend_backward)


def _forward(sizes: Sizes, q_ref: Any, k_ref: Any, v_ref: Any, *refs: Any) -> None:
    bias, mask, (o_ref,) = _given(sizes, refs)

    def one(image: Any, head: int) -> None:
        q, k = _read(sizes, q_ref, image, head), _read(sizes, k_ref, image, head)
        v = _there(_read(sizes, v_ref, image, head), sizes.keys, sizes.k)
        shares, total = _shares(sizes, q, k, _bias(sizes, bias, head), _mask(mask, image))
        out = _product(shares.astype(v.dtype), v, (1, 0)) / total
        _lanes(sizes, o_ref, image, head)[...] = out.astype(o_ref.dtype)

    _each(sizes, one)


def _backward(sizes: Sizes, q_ref: Any, k_ref: Any, v_ref: Any, do_ref: Any, *refs: Any) -> None:
    bias, mask, (dq_ref, dk_ref, dv_ref, *rest) = _given(sizes, refs)
    dbias, sums = (rest[0], rest[1:]) if sizes.biased else (None, rest)
    image_step, _, tile = sizes.place(*(pl.program_id(i) for i in range(3)))

    if dbias is not None:

        @pl.when(image_step == 0)
        def _start() -> None:
            dbias[...] = jnp.zeros(dbias.shape, dbias.dtype)

    def one(image: Any, head: int) -> None:
        q, do = (
            _there(_read(sizes, ref, image, head), sizes.tile, sizes.q, tile)
            for ref in (q_ref, do_ref)
        )
        k, v = (
            _there(_read(sizes, ref, image, head), sizes.keys, sizes.k) for ref in (k_ref, v_ref)
        )
        near, seen = _bias(sizes, bias, head, tile), _mask(mask, image)
        shares, total = _shares(sizes, q, k, near, seen)
        shares = shares / total
        dshares = _product(do, v, (1, 1))
        dlogits = shares * (dshares - jnp.sum(shares * dshares, axis=1, keepdims=True))
        if seen is not None:
            dlogits = jnp.where(seen != 0, dlogits, 0.0)
        if dbias is not None:
            dbias[0, head] += dlogits
        scaled = (dlogits * sizes.scale).astype(k.dtype)
        dq = _product(scaled, k, (1, 0))
        _lanes(sizes, dq_ref, image, head)[...] = dq.astype(dq_ref.dtype)
        dk, dv = _product(scaled, q, (0, 0)), _product(shares.astype(do.dtype), do, (0, 0))
        for ref, total, new in zip((dk_ref, dv_ref), sums or (None, None), (dk, dv), strict=True):
            out = _lanes(sizes, ref.at[0], image, head)
            if total is None:
                out[...] = new.astype(out.dtype)
            else:
                _add_up(sizes, tile, _lanes(sizes, total, image, head), new, out)

    _each(sizes, one)


def _add_up(sizes: Sizes, tile: Any, total: Any, new: Array, out: Any) -> None:
    """Adds what a tile gives, and writes the sum out after the last."""

    @pl.when(tile == 0)
    def _start() -> None:
        total[...] = new

    @pl.when(tile > 0)
    def _add() -> None:
        total[...] += new

    @pl.when(tile == sizes.tiles - 1)
    def _write() -> None:
        out[...] = total[...].astype(out.dtype)


def _given(sizes: Sizes, refs: Any) -> tuple[Any, Any, list[Any]]:
    """Bias and mask, where there are, and the rest."""
    rest = list(refs)
    bias = rest.pop(0) if sizes.biased else None
    mask = rest.pop(0) if sizes.masked else None
    return bias, mask, rest


def _each(sizes: Sizes, body: Any) -> None:
    """`body` of every image and head of an instance."""

    def image(i: Any, carry: None = None) -> None:
        for head in range(sizes.group):
            body(i, head)

    if sizes.images == 1:
        image(0)
    else:
        jax.lax.fori_loop(0, sizes.images, image, None)


def _lanes(sizes: Sizes, ref: Any, image: Any, head: int) -> Any:
    width = ref.shape[-1] // sizes.group
    return ref.at[image, :, head * width : (head + 1) * width]


def _read(sizes: Sizes, ref: Any, image: Any, head: int) -> Array:
    return _lanes(sizes, ref, image, head)[...]


def _bias(sizes: Sizes, bias: Any, head: int, tile: Any = None) -> Any:
    if bias is None:
        return None
    near = bias[head].astype(jnp.float32)
    return near if tile is None else _there(near, sizes.tile, sizes.q, tile)


def _mask(mask: Any, image: Any) -> Any:
    return None if mask is None else mask[image].astype(jnp.int32)


def _there(x: Array, rows: int, number: int, tile: Any = 0) -> Array:
    """Rows of a tile, zero from the `number`th of all on, where memory holds anything."""
    if number % rows == 0:
        return x
    row = tile * rows + jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    return jnp.where(row < number, x, jnp.zeros_like(x))


def _shares(sizes: Sizes, q: Array, k: Array, bias: Any, mask: Any) -> tuple[Array, Array]:
    """Softmax of a head, [tile, keys], before it is divided by its sum; and this, [tile, 1]."""
    logits = _product(q, k, (1, 1)) * sizes.scale
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask != 0, logits, MASKED)
    if sizes.keys > sizes.k:
        number = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        logits = jnp.where(number < sizes.k, logits, -jnp.inf)
    shares = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
    return shares, jnp.sum(shares, axis=1, keepdims=True)


def _product(x: Array, y: Array, contract: tuple[int, int]) -> Array:
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    # Products of bfloat16 are exact; Mosaic refuses to be asked for that.
    precision = None if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(
        x, y, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def _call(
    kernel: Any,
    sizes: Sizes,
    arrays: list[Array],
    specs: list[pl.BlockSpec],
    bias: Any,
    mask: Any,
    outputs: list[Any],
    out_specs: list[pl.BlockSpec],
    scratch: Any = (),
    *,
    products: int,
) -> Any:
    """The kernel for all instances; `products` of as many numbers as there are logits and lanes."""
    if bias is not None:
        arrays, specs = [*arrays, bias], [*specs, _of_bias(sizes)]
    if mask is not None:
        arrays, specs = [*arrays, mask.astype(jnp.int8)], [*specs, _of_mask(sizes, mask)]
    logits = sizes.batch * sizes.q * sizes.k
    return pl.pallas_call(
        functools.partial(kernel, sizes),
        grid=sizes.grid,
        in_specs=specs,
        out_specs=out_specs,
        out_shape=outputs,
        scratch_shapes=scratch,
        cost_estimate=pl.CostEstimate(
            flops=2 * products * logits * arrays[0].shape[2],
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *outputs)),
            transcendentals=logits * sizes.heads,
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM
        ),
        interpret=sizes.interpret,
    )(*arrays)


def _spec(sizes: Sizes, block: tuple[int, ...], index: Any, **options: Any) -> pl.BlockSpec:
    """A block by the index that `index` gives of (images, heads, tile)."""
    return pl.BlockSpec(block, lambda *grid: index(*sizes.place(*grid)), **options)


def _of_queries(sizes: Sizes, x: Any) -> pl.BlockSpec:
    block = sizes.images, sizes.tile, x.shape[2] * sizes.group // sizes.heads
    return _spec(sizes, block, lambda image, head, tile: (image, tile, head))


def _of_keys(sizes: Sizes, x: Any, *, parts: bool = False) -> pl.BlockSpec:
    block = sizes.images, sizes.keys, x.shape[2] * sizes.group // sizes.heads
    if not parts:
        return _spec(sizes, block, lambda image, head, tile: (image, 0, head))
    own = sizes.biased  # a part for each tile
    return _spec(sizes, (1, *block), lambda image, head, tile: (tile if own else 0, image, 0, head))


def _sums(sizes: Sizes, x: Array) -> Any:
    """Room for what tiles give the gradient of keys or values."""
    width = x.shape[2] * sizes.group // sizes.heads
    return pltpu.VMEM((sizes.images, sizes.keys, width), jnp.float32)


def _of_bias(sizes: Sizes, *, lead: bool = False) -> pl.BlockSpec:
    block, none = (sizes.group, sizes.tile, sizes.keys), (0,) * lead
    return _spec(sizes, (1,) * lead + block, lambda image, head, tile: (*none, head, tile, 0))


def _of_mask(sizes: Sizes, mask: Array) -> pl.BlockSpec:
    if mask.shape[1] == 1:
        return _spec(sizes, (sizes.images, 1, sizes.keys), lambda image, head, tile: (image, 0, 0))
    block = sizes.images, sizes.tile, sizes.keys
    return _spec(sizes, block, lambda image, head, tile: (image, tile, 0))


def _sizes(
    q: Array, k: Array, v: Array, bias: Any, mask: Any, scale: float, interpret: Any
) -> Sizes:
    batch, number, heads, width = q.shape
    keys = _up(k.shape[1], LANES)
    at_once = LOGITS // (2 if bias is not None or q.dtype == jnp.float32 else 1)
    # As many heads as fill whole lanes.
    groups = [
        g
        for g in range(1, heads)
        if heads % g == 0 and g * width % LANES == 0 and g * v.shape[3] % LANES == 0
    ]
    sizes = Sizes(
        scale=scale,
        batch=batch,
        q=number,
        k=k.shape[1],
        heads=heads,
        images=1,
        tile=_up(pl.cdiv(number, pl.cdiv(number * keys, at_once)), ROWS),
        keys=keys,
        group=groups[0] if groups else heads,
        biased=bias is not None,
        masked=mask is not None,
        interpret=interpret,
    )
    while sizes.tile > ROWS and _room(sizes, q, v) > ROOM:
        sizes = sizes._replace(tile=_up(sizes.tile // 2, ROWS))
    most = min(MOST_IMAGES, max(SHORT // sizes.tile, 1)) if sizes.tiles == 1 else 1
    several = [sizes._replace(images=n) for n in range(most, 1, -1) if batch % n == 0]
    return next((found for found in several if _room(found, q, v) <= ROOM), sizes)


def _room(sizes: Sizes, q: Array, v: Array) -> int:
    """Bytes that an instance takes on the way back: of keys, values and their gradients, two each.

    And the sums of these gradients, and of one head at a time some arrays as large as its logits.
    """
    lanes = (q.shape[3] + v.shape[3]) * sizes.group
    sums = 4 if sizes.tiles > 1 and not sizes.biased else 0
    of_keys = sizes.images * sizes.keys * lanes * (4 * q.dtype.itemsize + sums)
    beside = 16 * sizes.group * sizes.biased + 2 * sizes.masked  # of logits: their bias, the mask
    return of_keys + sizes.tile * sizes.keys * (ARRAYS * 4 + beside)


def _flat(x: Array) -> Array:
    return x.reshape(*x.shape[:2], -1)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
