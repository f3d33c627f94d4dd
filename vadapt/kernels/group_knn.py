"""Nearest neighbours of nodes in groups of channels, and the largest step towards them.

Source: GKGNet, arXiv:2308.14378, and its released code.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int, UInt8

from vadapt.errors import ShapeError
from vadapt.kernels import group_knn_tpu
from vadapt.kernels.position_bias import PositionBias
from vadapt.sharding import over_batch

Bias = PositionBias | Float[Array, "n m"] | None
CANDIDATES = 2**23  # distances at once, where no chip keeps them to itself


class Options(NamedTuple):
    """Options that are known while tracing."""

    groups: int
    k: int
    dilation: int
    num_sources: int
    width: int  # of a group
    dtype: Any  # of the sources

    @property
    def ranks(self) -> int:
        """As many of the nearest are looked for."""
        return (self.k - 1) * self.dilation + 1


def group_knn(
    targets: Float[Array, "b n c"],
    sources: Float[Array, "b m c"],
    *,
    groups: int,
    k: int,
    dilation: int = 1,
    bias: Bias = None,
) -> tuple[Int[Array, "b g n k"], Float[Array, "b g n k"]]:
    """For every target, in each group of channels, its k nearest sources and their distances.

    A distance is |x - y|^2 of nodes normalised within the group, plus the bias, in float32. Where
    it is no number, as of nodes that are not finite, it counts as infinite. Of equal distances,
    the first source's is the nearest. Nothing has a gradient.

    Args:
        groups: g, of contiguous channels.
        dilation: d; of all sources in order, those of ranks 0, d, ..., (k - 1) d are taken. Where
            there are less than k d, d is reduced, then k, with a warning.
        bias: added to the distances of all groups.

    Raises:
        ShapeError: sizes that do not go together.
    """
    options = _options(targets, sources, groups, k, dilation, bias)
    targets, sources, bias = jax.lax.stop_gradient((targets, sources, bias))
    plain = functools.partial(nearest, options=options)
    tpu = functools.partial(group_knn_tpu.search, options=options, names=("ids", "distances"))
    return over_batch(_either(plain, tpu, options, targets), targets, sources, whole=bias)


def group_max_relative(
    targets: Float[Array, "b n c"],
    sources: Float[Array, "b m c"],
    *,
    groups: int,
    k: int,
    dilation: int = 1,
    bias: Bias = None,
) -> tuple[Float[Array, "b n c"], Int[Array, "b g n k"]]:
    """For every target x and channel, the largest y - x of the sources y that `group_knn` finds.

    Here nodes are not normalised. Gradients go to x and to the largest y, of equal ones the
    nearest; none to distances and the bias. The backward pass needs the ids, and a byte a channel.

    Returns:
        The messages, in the targets' dtype, and the ids.
    """
    options = _options(targets, sources, groups, k, dilation, bias)
    return _max_relative(targets, sources, bias, options)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _max_relative(targets: Array, sources: Array, bias: Bias, options: Options) -> Any:
    return _largest(targets, sources, bias, options, ("messages", "ids"))


def _forward(targets: Array, sources: Array, bias: Bias, options: Options) -> Any:
    names = ("messages", "ids", "winners")
    messages, ids, winners = _largest(targets, sources, bias, options, names)
    return (messages, ids), (ids, winners)


def _backward(options: Options, kept: tuple[Array, Array], cotangents: Any) -> Any:
    def plain(x: Array, ids: Array, winners: Array, _: None) -> Array:
        return spread(x, ids, winners, options)

    def tpu(x: Array, ids: Array, winners: Array, _: None) -> Array:
        return group_knn_tpu.spread(x, ids, winners, options=options)

    sources = over_batch(_either(plain, tpu, options, cotangents[0]), cotangents[0], *kept)
    return -cotangents[0], sources, None


_max_relative.defvjp(_forward, _backward)


def _largest(
    targets: Array, sources: Array, bias: Bias, options: Options, names: tuple[str, ...]
) -> tuple[Array, ...]:
    def plain(targets: Array, sources: Array, bias: Bias) -> tuple[Array, ...]:
        return largest(targets, sources, bias, options)[: len(names)]

    tpu = functools.partial(group_knn_tpu.search, options=options, names=names)
    return over_batch(_either(plain, tpu, options, targets), targets, sources, whole=bias)


def _either(
    plain: Callable[..., Any], tpu: Callable[..., Any], options: Options, targets: Array
) -> Any:
    """The form that suits the platform; a batch of any size, in exports, is none for kernels."""
    fits = group_knn_tpu.fits(options.num_sources, options.width)
    if not fits or not isinstance(targets.shape[0], int):
        return plain

    def either(*arrays: Any) -> Any:
        return jax.lax.platform_dependent(*arrays, tpu=tpu, default=plain)

    return either


def nearest(targets: Array, sources: Array, bias: Bias, options: Options) -> tuple[Array, Array]:
    """`group_knn` in plain JAX."""

    def find(x: Array, y: Array, near: Array) -> tuple[Array, Array]:
        return _select(distances(x, y, near), options)

    found = _in_blocks(find, targets, sources, bias, options.groups)
    return rearrange(found[0], "b n g k -> b g n k"), rearrange(found[1], "b n g k -> b g n k")


def largest(
    targets: Array, sources: Array, bias: Bias, options: Options
) -> tuple[Float[Array, "b n c"], Int[Array, "b g n k"], UInt8[Array, "b n c"]]:
    """`group_max_relative` in plain JAX, and which of the k neighbours had the largest."""

    def find(x: Array, y: Array, near: Array) -> tuple[Array, Array, Array]:
        ids, _ = _select(distances(x, y, near), options)
        chosen = jax.vmap(lambda y, ids: y[ids], 1, 1)(y, ids).astype(jnp.float32)  # [n, g, k, w]
        step = chosen.max(axis=2) - x.astype(jnp.float32)
        return step.astype(x.dtype), ids, chosen.argmax(axis=2).astype(jnp.uint8)

    messages, ids, winners = _in_blocks(find, targets, sources, bias, options.groups)
    messages, winners = (rearrange(x, "b n g w -> b n (g w)") for x in (messages, winners))
    return messages, rearrange(ids, "b n g k -> b g n k"), winners


def spread(
    cotangents: Float[Array, "b n c"],
    ids: Int[Array, "b g n k"],
    winners: UInt8[Array, "b n c"],
    options: Options,
) -> Float[Array, "b m c"]:
    """The gradient of the sources in plain JAX: every target's goes to its winners."""
    b, _, c = cotangents.shape
    split = functools.partial(rearrange, pattern="b n (g w) -> b g n w", g=options.groups)
    winner = jnp.take_along_axis(ids, split(winners).astype(jnp.int32), axis=3, mode="clip")
    place = (jnp.arange(b)[:, None, None], rearrange(winner, "b g n w -> b n (g w)"))
    zeros = jnp.zeros((b, options.num_sources, c))
    found = zeros.at[(*place, jnp.arange(c)[None, None])].add(cotangents.astype(jnp.float32))
    return found.astype(options.dtype)


def distances(
    targets: Float[Array, "n g w"], sources: Float[Array, "m g w"], bias: Float[Array, "n m"]
) -> Float[Array, "n g m"]:
    """Distances of all sources from all targets, in float32; infinite where they are no numbers."""
    x, y = _normalised(targets), _normalised(sources)
    product = jnp.einsum("ngw,mgw->ngm", x, y, precision="highest")
    squares = jnp.square(x).sum(axis=2), jnp.square(y).sum(axis=2).T
    found = squares[0][:, :, None] - 2 * product + squares[1][None] + bias[:, None]
    return jnp.where(jnp.isnan(found), jnp.inf, found)


def _normalised(nodes: Array) -> Array:
    nodes = nodes.astype(jnp.float32)
    norm = jnp.sqrt(jnp.square(nodes).sum(axis=-1, keepdims=True))
    return nodes / jnp.maximum(norm, 1e-12)


def _select(found: Float[Array, "n g m"], options: Options) -> tuple[Array, Array]:
    lowest, ids = jax.lax.top_k(-found, options.ranks)
    return ids[..., :: options.dilation], -lowest[..., :: options.dilation]


def _in_blocks(
    find: Callable[..., tuple[Array, ...]],
    targets: Float[Array, "b n c"],
    sources: Float[Array, "b m c"],
    bias: Bias,
    groups: int,
) -> tuple[Array, ...]:
    """`find` of x [n, g, w], y [m, g, w], bias [n, m] for some targets at a time; [b, n, ...]."""
    n, m = targets.shape[1], sources.shape[1]
    blocks = -(-n * m * groups // CANDIDATES)
    size = -(-n // blocks)
    nodes = jnp.minimum(jnp.arange(blocks * size), n - 1).reshape(blocks, size)
    near = _reader(bias, m)

    def image(x: Array, y: Array) -> tuple[Array, ...]:
        return jax.lax.map(lambda nodes: find(x[nodes], y, near(nodes)), nodes)

    x, y = (rearrange(v, "b n (g w) -> b n g w", g=groups) for v in (targets, sources))
    at_once = max(1, CANDIDATES // (size * m * groups))
    if not isinstance(x.shape[0], int):  # JAX divides no batch of any size
        at_once = None
    found = jax.lax.map(lambda xy: image(*xy), (x, y), batch_size=at_once)
    return tuple(rearrange(v, "b s n ... -> b (s n) ...")[:, :n] for v in found)


def _reader(bias: Bias, num_sources: int) -> Callable[[Array], Array]:
    """Gives rows of the bias."""
    if bias is None:
        return lambda nodes: jnp.zeros((len(nodes), num_sources))
    if isinstance(bias, PositionBias):
        row, column = bias.factors()
        return lambda nodes: row[nodes // column.shape[0]] + column[nodes % column.shape[0]]
    return lambda nodes: bias.astype(jnp.float32)[nodes]


def _options(
    targets: Array, sources: Array, groups: int, k: int, dilation: int, bias: Bias
) -> Options:
    """Checked, and clamped to the number of sources."""
    (b, n, c), (_, m, _) = targets.shape, sources.shape
    if groups < 1 or c % groups:
        raise ShapeError(f"{c} channels cannot be split into {groups} groups")
    if min(k, dilation, b, n, m) < 1 or k > 256:
        raise ShapeError(
            f"no {k} neighbours, dilation {dilation}, of {b}x{n} targets and {m} sources: all must "
            "be positive, and k at most 256"
        )
    if bias is not None and bias.shape != (n, m):
        raise ShapeError(f"the bias is for {bias.shape} nodes, not for {n} targets, {m} sources")
    if k * dilation > m:
        fewer = min(k, m)
        less = max(1, m // fewer)
        warnings.warn(
            f"{m} sources are too few for {k} neighbours with dilation {dilation}: "
            f"taking {fewer} with dilation {less}",
            stacklevel=3,
        )
        k, dilation = fewer, less
    return Options(groups, k, dilation, m, c // groups, sources.dtype)
