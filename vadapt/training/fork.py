"""A run that goes on, under other settings and in a workdir of its own, from another's checkpoint.

What is trained is taken, and with it all of the state whose arrays the new settings have, too: the
step, the place in the data, the optimizer, statistics, teachers, queues, the moving average.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vadapt.errors import ConfigError
from vadapt.partition import Partition, choose, join, merge, variables
from vadapt.training.checkpoint import Checkpoints
from vadapt.training.step import State
from vadapt.training.stored_tree import kinds

FORKED_FROM = "forked_from"  # in what a checkpoint says of itself: the workdir and the step
_SHOWN = 4  # names in a message


class Origin(NamedTuple):
    """The checkpoint that a fork starts from; its workdir is only read."""

    checkpoints: Checkpoints
    step: int
    workdir: str  # absolute

    @property
    def record(self) -> dict[str, Any]:
        """The note of it in the fork's checkpoints."""
        return {"workdir": self.workdir, "step": self.step}


def find_origin(
    given: str | os.PathLike[str], workdir: Path, checkpoints: Checkpoints, total_steps: int
) -> Origin | None:
    """The checkpoint that `--from` names; None where the fork has begun and goes on by itself.

    Args:
        given: another workdir, whose newest checkpoint that can be read counts; or one of its
            checkpoints, as `DIR/checkpoints/800`.
        workdir: of the fork.
        checkpoints: of the fork.

    Raises:
        ConfigError: there is none, the fork's workdir holds another run, or the steps are done.
    """
    folder, step = _place(given)
    if folder == os.path.realpath(workdir):
        raise ConfigError(
            f"--from={given} is the --workdir itself: leave --from out to go on there, or take "
            "another --workdir to go on under other settings"
        )
    begun = checkpoints.latest()
    if begun is not None:
        before = checkpoints.about(begun).get(FORKED_FROM)
        if before and before["workdir"] == folder and step in (None, before["step"]):
            return None
        origin = f"began from {before['workdir']}, step {before['step']}" if before else "did not"
        raise ConfigError(
            f"--from={given}: {str(workdir)!r} holds a run that {origin}; take another --workdir, "
            "or leave --from out to go on with it"
        )
    theirs = Checkpoints(os.path.join(folder, "checkpoints"))
    found = theirs.latest() if step is None else step
    if found is None or found not in (there := theirs.steps()):
        has = "" if found is None else f" {found}; it has {there}"
        raise ConfigError(f"--from={given}: no complete checkpoint{has} under {folder!r}")
    if total_steps <= found:
        raise ConfigError(
            f"--from={given} has come to step {found}, and config.total_steps={total_steps} counts "
            f"from the start: to train {total_steps} steps more, write "
            f"--config.total_steps={found + total_steps}"
        )
    return Origin(theirs, found, folder)


def _place(given: str | os.PathLike[str]) -> tuple[str, int | None]:
    """The absolute workdir, and the step if one is named."""
    path = Path(os.path.realpath(Path(given).expanduser()))
    if path.name.isdigit() and path.parent.name == "checkpoints":
        return str(path.parent.parent), int(path.name)
    return str(path), None


def begin_at(state: State, step: int) -> State:
    """A state before its first step, as if so many had been done: what counts them stands there.

    Rates then follow the schedule from there on; the counters that correct the bias of moments go
    with these, and start with them.
    """
    counting = (optax.ScaleByScheduleState, optax.transforms.ConditionallyMaskState)

    def move(node: Any) -> Any:
        if isinstance(node, optax.ScaleByScheduleState):
            return node._replace(count=jnp.full_like(node.count, step))
        if isinstance(node, optax.transforms.ConditionallyMaskState):
            return node._replace(step=jnp.full_like(node.step, step))
        return node

    optimizer = jax.tree.map(move, state.optimizer, is_leaf=lambda x: isinstance(x, counting))
    return state._replace(step=jnp.full_like(state.step, step), optimizer=optimizer)


def take_over(
    origin: Origin, begun: State, types: Mapping[str, str]
) -> tuple[State, int, list[str]]:
    """The state of a fork before its first step, the stream's position, and lines for the log.

    Args:
        begun: the state where nothing is taken, of arrays where they shall lie; see `begin_at`.
        types: of variables by path, see `types_of`.

    Raises:
        ConfigError: what trains has other arrays; names them.
        WeightsError: the checkpoint cannot be read.
    """
    stored = origin.checkpoints.kinds(origin.step)
    wanted: dict[str, Any] = {"trainable": begun.trainable}
    _check_trained(origin, _under("trainable", stored), _named("trainable", begun.trainable))
    remarks = [f"forked from {origin.workdir}, step {origin.step}"]
    if _named("optimizer", begun.optimizer) == _under("optimizer", stored):
        wanted["optimizer"] = begun.optimizer
    else:
        remarks.append("the optimizer is new: the checkpoint's has other arrays")
    for kind in sorted({*types.values()}):
        # All or nothing: a place in a queue is of no use without the queue.
        tree = choose(begun.variables, lambda path, kind=kind: types[path] == kind)
        if _named("variables", tree).items() <= stored.items():
            wanted["variables"] = join(wanted.get("variables", {}), tree)
        else:
            remarks.append(
                f"what the model holds as {kind} is new: the checkpoint has other arrays"
            )
    if begun.ema is not None and _named("ema", begun.ema) == _under("ema", stored):
        wanted["ema"] = begun.ema
    elif begun.ema is not None:
        remarks.append("the moving average starts from what is trained: the checkpoint has none")
    known = {*_named("variables", begun.variables), *_named("ema", begun.ema)}
    left = [name for part in ("variables", "ema") for name in _under(part, stored)]
    if left := [name for name in left if name not in known]:
        remarks.append(f"left behind, since these settings have no use for it: {_listed(left)}")
    found = origin.checkpoints.restore({"state": wanted, "position": 0}, origin.step, partial=True)
    return _with(begun, found["state"]), found["position"], remarks


def _with(begun: State, found: Mapping[str, Any]) -> State:
    trainable = found["trainable"]
    ema = None if begun.ema is None else found.get("ema", jax.tree.map(jnp.copy, trainable))
    return begun._replace(
        trainable=trainable,
        optimizer=found.get("optimizer", begun.optimizer),
        variables=join(begun.variables, found.get("variables", {})),
        ema=ema,
    )


def types_of(parts: Partition) -> dict[str, str]:
    """The types of the variables that are no parameters, by path."""
    model = merge(parts.graph, parts.trainable, parts.frozen, parts.state)
    names = {path: type(variable).__name__ for path, variable in variables(model).items()}
    there = kinds(parts.state)
    return {path: name for path, name in names.items() if path in there}


def _under(part: str, stored: Mapping[str, str]) -> dict[str, str]:
    """Return the stored kinds of one field of `State`."""
    return {name: kind for name, kind in stored.items() if name.startswith(f"state/{part}/")}


def _named(part: str, tree: Any) -> dict[str, str]:
    """Return the kinds that a field with this tree would be stored as."""
    return kinds({"state": {part: tree}})


def _check_trained(origin: Origin, there: Mapping[str, str], here: Mapping[str, str]) -> None:
    differing = {
        "there alone": [name for name in there if name not in here],
        "here alone": [name for name in here if name not in there],
        "of other shapes": [n for n in here if n in there and there[n] != here[n]],
    }
    if any(differing.values()):
        said = "; ".join(f"{_listed(names)} {where}" for where, names in differing.items() if names)
        raise ConfigError(
            f"--from={origin.workdir}: what was trained there is not what these settings train: "
            f"{said}. Give the method, the head and config.trainable of that run."
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name.split("/", 2)[-1] for name in names[:_SHOWN]) + more
