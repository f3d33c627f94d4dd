"""The train step: one function of (frozen, state, batch), pure, jitted once over the mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from vadapt.micro_batches import counted, counting
from vadapt.partition import Partition, Tree, merge
from vadapt.remat import rematerialise, scanned

LossFn = Callable[[Any, dict[str, Array], Array], tuple[Array, dict[str, Array]]]
State = dict[str, Any]  # trainable, optimizer, variables, step, and ema if asked for


@dataclass(frozen=True)
class StepOptions:
    """Options of how a step computes; none of it is the model's business.

    Args:
        compute_dtype: of activations and of the weights while they are used; "bfloat16" or
            "float32". What trains is kept, and updated, in float32.
        accumulate: micro-batches a step; the gradient is that of the whole batch, see
            `vadapt.micro_batches`. Norms that take a batch's statistics take a micro-batch's.
        remat: what blocks keep for the backward pass, "none" (everything), "dots" or "blocks"; see
            `vadapt.remat.rematerialise`.
        scan: whether alike blocks in a row become one loop; see `vadapt.remat.scanned`.
        ema: decay of an exponential moving average of what trains; 0 for none.
    """

    compute_dtype: str = "float32"
    accumulate: int = 1
    remat: str = "none"
    scan: bool = False
    ema: float = 0.0


def init_state(parts: Partition, optimizer: Any, options: StepOptions) -> State:
    """The state of a run before its first step."""
    state = {
        "trainable": parts.trainable,
        "optimizer": optimizer.init(parts.trainable),
        "variables": parts.state,
        "step": jnp.zeros((), jnp.int32),
    }
    if options.ema:
        state["ema"] = jax.tree.map(jnp.copy, parts.trainable)
    return state


def make_step(
    graph: Any,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Any], Any],
    options: StepOptions,
    *,
    seed: int,
    gather: Callable[[Tree], Tree] = lambda tree: tree,
) -> Callable[[Tree, State, dict[str, Array]], tuple[State, dict[str, Array]]]:
    """A pure step: (frozen, state, batch) to (state, metrics).

    Gradients exist for the trainable tree only. The randomness of step i is a function of the
    seed and i, so that a resumed run draws what an uninterrupted one would have.

    Args:
        gather: makes weights, already in the compute type, whole where they are used; needed where
            devices hold a part of them each.
    """
    dtype = jnp.dtype(options.compute_dtype)

    def loss(trainable: Tree, frozen: Tree, variables: Tree, batch: Any, key: Array) -> Any:
        trainable, frozen = (gather(cast(tree, dtype)) for tree in (trainable, frozen))
        model = merge(graph, trainable, frozen, variables)
        with rematerialise(options.remat), scanned(options.scan):
            value, metrics = loss_fn(model, batch, key)
        _, _, changed = nnx.split(model, nnx.Param, ...)
        return value.astype(jnp.float32), (metrics, nnx.to_pure_dict(changed))

    def step(frozen: Tree, state: State, batch: dict[str, Array]) -> Any:
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        (value, (metrics, variables)), grads = _accumulated(
            loss, state["trainable"], frozen, state["variables"], batch, key, options.accumulate
        )
        # optax multiplies integer counters with floats.
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optimizer.update(
                grads, state["optimizer"], state["trainable"]
            )
        trainable = optax.apply_updates(state["trainable"], updates)
        metrics = {
            **metrics,
            "loss": value,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state["step"]), jnp.float32),
        }
        new = {
            "trainable": trainable,
            "optimizer": optimizer_state,
            "variables": variables,
            "step": state["step"] + 1,
        }
        if options.ema:
            new["ema"] = optax.incremental_update(trainable, state["ema"], 1.0 - options.ema)
        return new, metrics

    return step


def cast(tree: Tree, dtype: Any) -> Tree:
    """Floating-point leaves in another dtype."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )


def _accumulated(
    loss: Callable[..., Any],
    trainable: Tree,
    frozen: Tree,
    variables: Tree,
    batch: dict[str, Array],
    key: Array,
    parts: int,
) -> Any:
    """Loss, metrics, statistics and gradients of a batch, in `parts` micro-batches."""
    gradient = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return gradient(trainable, frozen, variables, batch, key)

    # Every `parts`-th image goes into one micro-batch, so that each is spread over all devices.
    micro = {
        name: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        for name, x in batch.items()
    }
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(parts))

    def count(item: Any) -> list[Array]:
        with counting() as counts:
            loss(trainable, frozen, variables, *item)
        return counts  # of the data alone: the compiler drops the model

    counts = [x.mean(axis=0) for x in jax.lax.map(count, (micro, keys))]

    def one(carry: Any, item: Any) -> Any:
        variables, sums = carry
        with counted(counts):
            (value, (metrics, variables)), grads = gradient(trainable, frozen, variables, *item)
        return (variables, jax.tree.map(jnp.add, sums, ((value, metrics), grads))), None

    first = jax.tree.map(lambda x: x[0], (micro, keys))
    shapes = jax.eval_shape(gradient, trainable, frozen, variables, *first)
    (value, (metrics, _)), grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (variables, sums), _ = jax.lax.scan(one, (variables, ((value, metrics), grads)), (micro, keys))
    (value, metrics), grads = jax.tree.map(lambda x: x / parts, sums)
    return (value, (metrics, variables)), grads
