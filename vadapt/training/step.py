"""The train step: one function of (frozen, state, batch), pure, jitted once over the mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from vadapt.errors import ConfigError
from vadapt.micro_batches import counted, counting
from vadapt.partition import Partition, Queue, Teacher, Tree, choose, flatten, join, merge
from vadapt.quantization import cast, in_use
from vadapt.remat import rematerialise, scanned
from vadapt.training.task import Loss, Player

MEMORY = (Teacher, Queue)  # what moves once a step, by `after_update`
OptimizerState = Any  # a pytree of optax's; with several players a dictionary of theirs, by name
AfterUpdate = Callable[..., None]  # see `vadapt.training.task.Remembers`


class State(NamedTuple):
    """What a step changes: arrays, or in their places their shapes or shardings.

    A checkpoint names its leaves by these fields, whose names must therefore stay.
    """

    step: Array  # int32 [], steps done
    trainable: Tree  # float32
    optimizer: OptimizerState
    variables: Tree  # what neither trains nor is frozen: statistics, teachers, queues
    ema: Tree | None = None  # the moving average of `trainable`, if one is asked for


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


class Learner(NamedTuple):
    """A player with its optimizer."""

    player: Player
    optimizer: optax.GradientTransformation
    schedule: Callable[[Any], Any]

    def divide(self, trainable: Tree) -> tuple[Tree, Tree]:
        """What this one trains, and the rest."""
        owns = self.player.owns
        return choose(trainable, owns), choose(trainable, lambda path: not owns(path))

    def update(self, grads: Tree, held: OptimizerState, own: Tree) -> tuple[Tree, OptimizerState]:
        """What it trains after a step, and its optimizer's state."""
        # optax multiplies integer counters with floats.
        with jax.numpy_dtype_promotion("standard"):
            updates, held = self.optimizer.update(grads, held, own)
        updated: Any = optax.apply_updates(own, updates)
        return updated, held


def single(
    loss: Loss, optimizer: optax.GradientTransformation, schedule: Callable[[Any], Any]
) -> tuple[Learner, ...]:
    """One learner, which trains everything."""
    return (Learner(Player("", ".*", loss), optimizer, schedule),)


def init_state(parts: Partition, learners: Sequence[Learner], options: StepOptions) -> State:
    """The state of a run before its first step.

    Raises:
        ConfigError: a parameter trains and is no player's, or several players'.
    """
    _check_owners(parts.trainable, learners)
    begun = {
        one.player.name: one.optimizer.init(one.divide(parts.trainable)[0]) for one in learners
    }
    return State(
        step=jnp.zeros((), jnp.int32),
        trainable=parts.trainable,
        optimizer=_stored(begun),
        variables=parts.state,
        ema=jax.tree.map(jnp.copy, parts.trainable) if options.ema else None,
    )


def _stored(optimizers: dict[str, OptimizerState]) -> OptimizerState:
    """The states of all players' optimizers as `State` has them; a lone one's without its name."""
    return optimizers if len(optimizers) > 1 else next(iter(optimizers.values()))


def _by_player(optimizer: OptimizerState, learners: Sequence[Learner]) -> dict[str, OptimizerState]:
    """The inverse of `_stored`, a new dictionary."""
    return dict(optimizer) if len(learners) > 1 else {learners[0].player.name: optimizer}


def make_step(
    graph: nnx.GraphDef,
    learners: Sequence[Learner],
    options: StepOptions,
    *,
    seed: int,
    gather: Callable[[Tree], Tree] = lambda tree: tree,
    after_update: AfterUpdate | None = None,
) -> Callable[[Tree, State, dict[str, Array]], tuple[State, dict[str, Array]]]:
    """A pure step: (frozen, state, batch) to (state, metrics).

    Gradients exist for the trainable tree only. The randomness of step i is a function of the
    seed and i, so that a resumed run draws what an uninterrupted one would have.

    Args:
        gather: makes weights, already in the compute type, whole where they are used; needed where
            devices hold a part of them each.
        after_update: see `vadapt.training.task.Remembers`.
    """
    loss = _make_loss(graph, options, gather)

    def step(frozen: Tree, state: State, batch: dict[str, Array]) -> tuple[State, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        optimizers = _by_player(state.optimizer, learners)
        trainable, variables = state.trainable, state.variables
        outputs, metrics, losses = {}, {}, []
        for one in learners:
            name = one.player.name
            own, others = one.divide(state.trainable)
            (value, (found, variables, given)), grads = _accumulated(
                functools.partial(loss, one.player.loss),
                (own, others, frozen, variables, batch),
                key,
                options.accumulate,
            )
            own, optimizers[name] = one.update(grads, optimizers[name], own)
            trainable, outputs = join(trainable, own), {**outputs, **given}
            found |= {"loss": value, "grad_norm": optax.tree.norm(grads)}
            found["learning_rate"] = jnp.asarray(one.schedule(state.step), jnp.float32)
            losses.append(value)
            prefix = f"{name}/" if name else ""
            metrics |= {prefix + metric: x for metric, x in found.items()}
        if after_update is not None:
            variables = _remember(after_update, graph, trainable, frozen, variables, outputs)
        new = State(state.step + 1, trainable, _stored(optimizers), variables)
        if state.ema is not None:
            ema = optax.incremental_update(trainable, state.ema, 1.0 - options.ema)
            new = new._replace(ema=ema)
        return new, {**metrics, "loss": sum(losses[1:], losses[0])}

    return step


def _make_loss(
    graph: nnx.GraphDef, options: StepOptions, gather: Callable[[Tree], Tree]
) -> Callable[..., Any]:
    """A player's loss as a function of trees, to differentiate by the first of them."""
    dtype = jnp.dtype(options.compute_dtype)

    def loss(
        function: Loss,
        own: Tree,
        others: Tree,
        frozen: Tree,
        variables: Tree,
        batch: Any,
        key: Array,
    ) -> Any:
        trees = (join(own, others), frozen)
        trainable, frozen = (gather(cast(tree, dtype)) for tree in trees)
        model = merge(graph, trainable, in_use(frozen, dtype), gather(variables))
        nnx.update(model, cast(nnx.state(model, MEMORY), dtype))
        with rematerialise(options.remat), scanned(options.scan):
            value, metrics, *outputs = function(model, batch, key)
        _, _, _, changed = nnx.split(model, nnx.Param, MEMORY, ...)
        variables = join(variables, nnx.to_pure_dict(changed))
        return value.astype(jnp.float32), (metrics, variables, outputs[0] if outputs else {})

    return loss


def _remember(
    after_update: AfterUpdate,
    graph: nnx.GraphDef,
    trainable: Tree,
    frozen: Tree,
    variables: Tree,
    outputs: Mapping[str, Array],
) -> Tree:
    """The variables after `after_update`."""
    model = merge(graph, trainable, in_use(frozen, jnp.float32), variables)
    after_update(model, outputs)
    return join(variables, nnx.to_pure_dict(nnx.state(model, MEMORY)))


def _check_owners(trainable: Tree, learners: Sequence[Learner]) -> None:
    for path in flatten(trainable):
        owners = [one.player.name for one in learners if one.player.owns(path)]
        if len(owners) != 1:
            raise ConfigError(
                f"{path!r} trains and is of {len(owners)} players{': ' if owners else ''}"
                f"{', '.join(owners)}; it must be one's"
            )


def _accumulated(
    loss: Callable[..., Any], arguments: tuple[Tree, ...], key: Array, parts: int
) -> Any:
    """Loss, metrics, variables, outputs and gradients of a batch, in `parts` micro-batches.

    Args:
        loss: a function of the arguments and a key, differentiated by the first of them.
        arguments: the last two are the variables, which go from part to part, and the batch.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return gradient(*arguments, key)
    *trees, variables, batch = arguments

    # Every `parts`-th image goes into one micro-batch, so that each is spread over all devices.
    micro = {
        name: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
        for name, x in batch.items()
    }
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(parts))

    def count(item: Any) -> list[Array]:
        with counting() as counts:
            loss(*trees, variables, *item)
        return counts  # of the data alone: the compiler drops the model

    counts = [x.sum(axis=0) for x in jax.lax.map(count, (micro, keys))]

    def one(carry: Any, item: Any) -> Any:
        variables, sums = carry
        with counted(counts, parts):
            result = gradient(*trees, variables, *item)
        (value, (metrics, variables, outputs)), grads = result
        sums = jax.tree.map(jnp.add, sums, ((value, metrics), grads))
        return (variables, sums), outputs

    first = jax.tree.map(lambda x: x[0], (micro, keys))
    shapes = jax.eval_shape(gradient, *trees, variables, *first)
    (value, (metrics, *_)), grads = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (variables, sums), outputs = jax.lax.scan(
        one, (variables, ((value, metrics), grads)), (micro, keys)
    )
    (value, metrics), grads = jax.tree.map(lambda x: x / parts, sums)
    whole = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), outputs)
    return (value, (metrics, variables, whole)), grads
