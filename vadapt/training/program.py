"""From a config to the one program of a run: its step over a mesh, before there is any number.

The loop runs it, `vadapt.plan` compiles it for machines that are not here: the same step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from vadapt import sharding
from vadapt.errors import ConfigError
from vadapt.partition import Partition, Tree, choose
from vadapt.quantization import store
from vadapt.training.optimizers import learning_rate, make_optimizer, optimizer_table
from vadapt.training.step import Learner, State, StepOptions, init_state, make_step
from vadapt.training.task import Player, Task, players_of


class Program(NamedTuple):
    """A step, and what it takes: shapes, dtypes and shardings, no numbers."""

    mesh: Mesh
    frozen: Tree  # in config.parallel.frozen_dtype
    state: State
    begin: Callable[[Tree, Tree], State]  # (trainable, variables) to the state before all steps
    step: Callable[..., Any]  # pure: (frozen, state, batch) to (state, metrics)

    @property
    def shardings(self) -> State:
        """Where each leaf of the state lies."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.state)

    def trace(self, batch: Mapping[str, Any]) -> Any:
        """The step for a batch (arrays or their shapes); `.lower().compile()` it."""
        place = sharding.batch_sharding(self.mesh)
        shapes = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
            for name, x in batch.items()
        }
        jitted = jax.jit(
            self.step,
            donate_argnums=1,
            out_shardings=(self.shardings, sharding.replicated(self.mesh)),
        )
        with jax.set_mesh(self.mesh):  # for kernels that map themselves over the batch
            return jitted.trace(self.frozen, self.state, shapes)


def make_program(parts: Partition, task: Task, config: Any, mesh: Mesh) -> Program:
    """The program of `config` for a model's partition, of arrays or of their shapes.

    Args:
        task: gives the loss, or several players; see `vadapt.training.task`.

    Raises:
        ConfigError: the batch does not divide over the devices; or see `init_state`.
    """
    check_batch(config, mesh.size)
    options = StepOptions(**config.parallel.step)
    learners = [_learner(player, parts.trainable, config) for player in players_of(task)]

    def begin(trainable: Tree, variables: Tree) -> State:
        return init_state(parts._replace(trainable=trainable, state=variables), learners, options)

    def stored(frozen: Tree) -> Tree:
        return store(frozen, config.parallel.frozen_dtype)

    def placed(function: Callable[..., Any], *trees: Tree) -> Any:
        shapes = jax.eval_shape(function, *trees)
        return sharding.abstract(shapes, sharding.tree_sharding(shapes, mesh))

    return Program(
        mesh,
        placed(stored, parts.frozen),
        placed(begin, parts.trainable, parts.state),
        begin,
        make_step(
            parts.graph,
            learners,
            options,
            seed=config.seed,
            gather=functools.partial(sharding.gather, mesh=mesh),
            after_update=getattr(task, "after_update", None),
        ),
    )


def optimizer_tables(trainable: Tree, task: Task, config: Any) -> str:
    """How every parameter is trained, for people; see `optimizers.optimizer_table`."""
    tables = []
    for player in players_of(task):
        own = choose(trainable, player.owns)
        lengths = {"total_steps": config.total_steps, "batch_size": config.batch_size}
        tables.append(optimizer_table(_settings(player, config), own, **lengths))
    return "\n".join(tables)


def _settings(player: Player, config: Any) -> Any:
    """A player's section of `config.optimizers`, or `config.optimizer`."""
    return config.get("optimizers", {}).get(player.name, config.optimizer)


def _learner(player: Player, trainable: Tree, config: Any) -> Learner:
    """A player with its optimizer."""
    settings = _settings(player, config)
    schedule = learning_rate(settings, config.total_steps, config.batch_size)
    own = choose(trainable, player.owns)
    optimizer = make_optimizer(settings, own, schedule, total_steps=config.total_steps)
    return Learner(player, optimizer, schedule)


def check_batch(config: Any, devices: int) -> None:
    """Refuses a batch that cannot be cut evenly, with the next size that can.

    Raises:
        ConfigError: as said.
    """
    accumulate = config.parallel.step.accumulate
    parts = devices * accumulate
    if config.batch_size < 1 or config.batch_size % parts:
        raise ConfigError(
            f"config.batch_size={config.batch_size} does not divide over {devices} devices times "
            f"{accumulate} micro-batches; the next that does is "
            f"{max(-(-config.batch_size // parts), 1) * parts}"
        )
