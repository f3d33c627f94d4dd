"""Softmax attention that keeps no logits: one function, and the form that suits the machine.

TPUs take `kernels.attention_tpu`, GPUs cuDNN's where it can, and all others plain products, which
are quickest on CPUs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vadapt.errors import ShapeError
from vadapt.kernels import attention_tpu
from vadapt.sharding import over_batch

HALF = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
WIDEST = 128  # head that cuDNN takes on every GPU that it knows


def attention(
    queries: Float[Array, "b q h d"],
    keys: Float[Array, "b k h d"],
    values: Float[Array, "b k h e"],
    *,
    scale: float | None = None,
    bias: Float[Array, "h q k"] | None = None,
    tables: Sequence[Float[Array, "r h"]] = (),
    index: Int[np.ndarray, "q k"] | None = None,
    mask: Bool[Array, "b _ k"] | None = None,
) -> Float[Array, "b q h e"]:
    """Values, weighed by the softmax of queries times keys; logits and softmax in float32.

    Args:
        scale: of the products; 1 / sqrt(d) by default.
        bias: added to the logits of all images.
        tables, index: a bias by relative positions, the sum of tables[...][index]. Over several
            devices, gradients of the tables are added up, not those of the logits.
        mask: False for keys that are not seen, by all queries ([b, 1, k]) or each ([b, q, k]); a
            query that sees none takes the mean of all values.

    Raises:
        ShapeError: tables without their index.
    """
    if (index is None) != (not tables):
        raise ShapeError("relative positions need both tables and the index into them")
    factor = queries.shape[-1] ** -0.5 if scale is None else scale

    def run(queries: Array, keys: Array, values: Array, *rest: Any) -> Array:
        *masks, (bias, tables) = rest
        if index is not None:
            near = relative_bias(tables, index)
            bias = near if bias is None else bias + near
        return _either(queries, keys, values, bias, masks[0] if masks else None, scale=factor)

    batched = (queries, keys, values) if mask is None else (queries, keys, values, mask)
    return over_batch(run, *batched, whole=(bias, tuple(tables)))


def relative_bias(
    tables: Sequence[Float[Array, "r h"]], index: Int[np.ndarray, "q k"]
) -> Float[Array, "h q k"]:
    """The sum of tables, read by an index, in float32."""
    table = functools.reduce(jnp.add, (table.astype(jnp.float32) for table in tables))
    return jnp.moveaxis(table[index], 2, 0)


@functools.partial(jax.jit, static_argnames="scale")  # blocks are alike, and traced once
def _either(q: Array, k: Array, v: Array, bias: Any, mask: Any, *, scale: float) -> Array:
    """The form that suits the platform: a GPU's is known while tracing, a TPU's when lowering."""
    rest = functools.partial(elsewhere(q, k, v, bias, mask), scale=scale)
    # A batch of any size, in exports, is none for kernels.
    if not isinstance(q.shape[0], int) or not attention_tpu.fits(q, k, v, bias, mask):
        return rest(q, k, v, bias, mask)

    def tpu(q: Array, k: Array, v: Array, bias: Any, mask: Any) -> Array:
        return attention_tpu.attend(q, k, v, bias, mask, scale, False)

    return jax.lax.platform_dependent(q, k, v, bias, mask, tpu=tpu, default=rest)


def elsewhere(q: Array, k: Array, v: Array, bias: Any, mask: Any) -> Callable[..., Array]:
    """The form for what is no TPU."""
    gpu = jax.default_backend() == "gpu"
    return cudnn if gpu and cudnn_takes(q, k, v, bias, mask) else plain


def plain(
    queries: Array, keys: Array, values: Array, bias: Any, mask: Any, *, scale: float
) -> Array:
    """`attention` in plain products; jax.nn's take 1.2 to 2.5 times as long on CPUs."""
    weights = shares(queries, keys, bias, mask, scale=scale).astype(values.dtype)
    out = jnp.einsum("bhqk,bhkd->bhqd", weights, jnp.swapaxes(values, 1, 2))
    return jnp.swapaxes(out, 1, 2)


def shares(
    queries: Float[Array, "b q h d"],
    keys: Float[Array, "b k h d"],
    bias: Any = None,
    mask: Any = None,
    *,
    scale: float,
) -> Float[Array, "b h q k"]:
    """The weights of the values, float32; rows sum to 1."""
    # Heads before tokens: as "bqhd,bkhd->bhqk", XLA's products can take twice as long on CPUs.
    queries, keys = jnp.swapaxes(queries, 1, 2), jnp.swapaxes(keys, 1, 2)
    logits = jnp.einsum("bhqd,bhkd->bhqk", queries, keys, preferred_element_type=jnp.float32)
    logits = logits * scale
    if bias is not None:
        logits = logits + bias[None]
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(logits, axis=-1)


def cudnn_takes(q: Array, k: Array, v: Array, bias: Any, mask: Any) -> bool:
    """Whether cuDNN's attention has a form for these, forward and backward, on any GPU it knows."""
    width, odd = q.shape[3], q.shape[1] % 2 or k.shape[1] % 2
    return (
        q.dtype in HALF
        and width == v.shape[3]
        and width <= WIDEST
        and width % 8 == 0
        and not (odd and (bias is not None or mask is not None))
    )


def cudnn(q: Array, k: Array, v: Array, bias: Any, mask: Any, *, scale: float) -> Array:
    """`attention` by cuDNN, where jaxlib finds it."""
    try:
        return jax.nn.dot_product_attention(
            q,
            k,
            v,
            bias=None if bias is None else bias[None].astype(q.dtype),
            mask=None if mask is None else mask[:, None],
            scale=scale,
            implementation="cudnn",
        )
    except (RuntimeError, NotImplementedError):  # of a jaxlib or a GPU without it
        return plain(q, k, v, bias, mask, scale=scale)
