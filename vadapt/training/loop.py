"""The one training loop: it knows the partition and what a task offers, no task by name."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vadapt import sharding
from vadapt.errors import ConfigError
from vadapt.partition import Partition, Tree, count, human_bytes, merge, num_bytes, split, summary
from vadapt.quantization import INT8, cast, in_use, store
from vadapt.runtime.distributed import from_first
from vadapt.runtime.interrupt import StopSignal, partners
from vadapt.runtime.program_cache import ProgramCache
from vadapt.training.checkpoint import Checkpoints
from vadapt.training.evaluation import Evaluations, best_of
from vadapt.training.fork import FORKED_FROM, Origin, begin_at, take_over, types_of
from vadapt.training.logging import RunLog
from vadapt.training.program import Program, check_batch, make_program, optimizer_tables
from vadapt.training.same_data import DATA, check_data
from vadapt.training.settings import check_settings
from vadapt.training.step import State
from vadapt.training.task import Model, Task
from vadapt.training.watch import Watch
from vadapt.weights.rounding import remember_matrices


@dataclass(frozen=True)
class Outcome(Generic[Model]):
    """The result of a run in memory; the models are whole, in float32, on one local device."""

    initial: Model  # the model before its first step
    model: Model  # the model now (its moving average, if there is one)
    steps: int  # done so far, over all resumptions
    images_per_second: float  # of this session, compiling, saving and drawing left out
    trainable_parameters: int
    finished: bool  # False: a signal stopped it; the same command goes on


@dataclass(frozen=True)
class Session(Generic[Model]):
    """The resources that are open while a run goes on."""

    task: Task[Model]
    config: Any
    mesh: Mesh
    stream: Any  # what `Task.stream` gives
    example: dict[str, np.ndarray]  # the first batch of all
    checkpoints: Checkpoints
    about: dict[str, Any]  # what each checkpoint says besides
    log: RunLog
    stop: StopSignal
    programs: ProgramCache
    began: float


@dataclass(frozen=True)
class Run(Generic[Model]):
    """A model on the mesh, ready to step."""

    program: Program
    graph: nnx.GraphDef[Model]
    frozen: Tree
    initial: Tree  # what trains, before the first step
    state: State


def fit(
    task: Task[Model],
    config: Any,
    workdir: str | Path,
    *,
    stop_at: int | None = None,
    devices: Sequence[Any] | None = None,
    checkpoints: Checkpoints | None = None,
    remarks: Sequence[str] = (),
    origin: Origin | None = None,
) -> Outcome[Model]:
    """Trains until `config.total_steps`, from the newest checkpoint in the workdir if there is one.

    Args:
        task: what is learned.
        stop_at: an earlier step to be content with (to evaluate a run that is not finished).
        devices: to train on; by default all.
        checkpoints: those to go on from, by default the workdir's.
        remarks: lines that open the log.
        origin: of a fork, the checkpoint to start from where there is none in the workdir.

    Raises:
        TrainingError: the loss or another metric is not finite (names it and the step), a file
            cannot be written, or another process of the run is gone.
        ConfigError: the batch does not divide over the devices, or see `check_settings`.
        DataError: the data are not those of the newest checkpoint, see `training.same_data`.
    """
    began = time.perf_counter()
    check_settings(config, task)
    mesh = sharding.make_mesh(config.parallel.fsdp, None if devices is None else list(devices))
    _check(config, mesh.size)
    workdir = Path(workdir)
    if checkpoints is None:
        checkpoints = open_checkpoints(config, workdir)
    newest = checkpoints.latest()
    origin = origin if newest is None else None
    start = newest if newest is not None else origin.step if origin else 0
    with contextlib.ExitStack() as opened:
        opened.enter_context(partners())
        stop = opened.enter_context(StopSignal())
        programs = opened.enter_context(ProgramCache(workdir / "compiled"))
        log = opened.enter_context(_log(config, workdir, start if stop_at is None else None))
        opened.enter_context(checkpoints)
        for line in (*remarks, _describe(mesh, config)):
            log.text(line)
        stream = opened.enter_context(contextlib.closing(task.stream()))
        about = _about(config, checkpoints, origin, stream, log) if stop_at is None else {}
        first = next(stream)
        session = Session(
            task, config, mesh, stream, first, checkpoints, about, log, stop, programs, began
        )
        last = config.total_steps if stop_at is None else stop_at
        return _loop(session, _prepare(session, origin), last)


def _log(config: Any, workdir: Path, start: int | None) -> RunLog:
    """The log of a session that goes on from step `start`; None for one that trains nothing."""
    return RunLog(
        workdir,
        total_steps=config.total_steps,
        images_per_step=config.batch_size,
        # To evaluate is no reason to drop lines, perhaps of a run that is still going on.
        start_step=config.total_steps if start is None else start,
        wandb=None if start is None else _wandb(config),
        config=config.to_dict(),
        active=jax.process_index() == 0,
    )


def _about(
    config: Any, checkpoints: Checkpoints, origin: Origin | None, stream: Any, log: RunLog
) -> dict[str, Any]:
    """Remarks for the session's checkpoints: where a fork began, and what the data are.

    Raises:
        DataError: the data are not those that the run was begun with.
    """
    step = checkpoints.latest() if origin is None else origin.step
    if step == config.total_steps:
        return {}  # nothing is trained
    now = from_first(getattr(stream, "identity", dict))
    before: dict[str, Any] = {}
    if step is not None:
        before = (checkpoints if origin is None else origin.checkpoints).about(step)
        allowed = origin is not None or bool(config.run.get("data_changed", False))
        for line in check_data(before, now, f"checkpoint {step} was written", allowed=allowed):
            log.text(line)
    forked = before.get(FORKED_FROM) if origin is None else origin.record
    return {name: value for name, value in ((DATA, now), (FORKED_FROM, forked)) if value}


def _wandb(config: Any) -> dict[str, str] | None:
    if not config.run.wandb:
        return None
    given = {name: config.run.get(f"wandb_{name}", "") for name in ("project", "name", "entity")}
    return {**given, "project": given["project"] or "vadapt"}


def open_checkpoints(config: Any, workdir: Path) -> Checkpoints:
    """The checkpoints of a workdir, by `config.run.keep_last` and what `config.eval` calls best."""
    metric, mode = best_of(config)
    return Checkpoints(
        workdir / "checkpoints",
        keep_last=config.run.keep_last,
        best_metric=metric,
        best_mode=mode,
    )


def _loop(session: Session[Model], run: Run[Model], last: int) -> Outcome[Model]:
    task, config, mesh, stream = session.task, session.config, session.mesh, session.stream
    checkpoints, log, stop = session.checkpoints, session.log, session.stop
    state = run.state
    start = done = int(state.step)
    evaluations = Evaluations(config, checkpoints)
    step = _compile(session, run) if start < last else run.program.step
    watch, seconds = Watch(checkpoints, start), 0.0

    def save() -> None:
        tree = {"state": state, "position": stream.position}
        marks = {"loss": watch.mean_loss(), **evaluations.marks(done)}
        checkpoints.save(done, tree, metrics=marks, about=session.about)

    def draw() -> None:
        for name, image in task.pictures(_model(run, state, mesh), session.example).items():
            log.image(done, name, image)

    while done < last and not stop.requested(done) and not evaluations.over(done):
        began = time.perf_counter()
        batch = sharding.place_batch(next(stream), mesh)
        state, metrics = step(run.frozen, state, batch)
        done += 1
        watch.add(done, metrics)
        logs, evaluates, saves, draws = _due(config, evaluations, done, last)
        values = watch.read() if logs or saves or evaluates or done == start + 1 else {}
        seconds += time.perf_counter() - began

        if done == start + 1:
            log.text(f"first step done after {time.perf_counter() - session.began:.1f} s")
        if logs:
            log.metrics(done, values)
        if logs or done == start + 1:  # the bar and its clock start with the first step
            log.progress(done, {"loss": values["loss"]})
        if evaluates:
            scores = task.evaluate(_model(run, state, mesh), on="validation")
            log.metrics(done, scores)
            log.text(evaluations.add(done, scores))
        if saves:
            save()
        if draws:
            draw()

    watch.read()
    if done > start:
        save()
        checkpoints.wait()
    finished = done >= last or evaluations.over(done)
    if finished:
        draw()
    else:
        log.text(_stopped(start, done))
    initial = state._replace(trainable=run.initial, ema=None)
    return Outcome(
        initial=_model(run, initial, mesh),
        model=_model(run, _best(session, run, state, evaluations.best_step), mesh),
        steps=done,
        images_per_second=(done - start) * config.batch_size / max(seconds, 1e-9),
        trainable_parameters=count(run.initial),
        finished=finished,
    )


def _due(
    config: Any, evaluations: Evaluations, done: int, last: int
) -> tuple[bool, bool, bool, bool]:
    """Whether to log, evaluate, save and draw after a step; the last step is seen to at the end."""

    def every(steps: int) -> bool:
        return bool(steps) and done % steps == 0 and done < last

    logs = every(config.run.log_every) or done == last
    evaluates = evaluations.due(done, last)
    saves = every(config.run.checkpoint_every) or (evaluates and bool(evaluations.best))
    return logs, evaluates, saves and done < last, every(config.run.get("pictures_every", 0))


def _model(run: Run[Model], state: State, mesh: Mesh) -> Model:
    """The model of a state, its moving average if there is one, as each process can use it."""
    trained = state.trainable if state.ema is None else state.ema
    trees = (trained, run.frozen, state.variables)
    return merge(run.graph, *(_whole(tree, mesh) for tree in trees))


def _best(session: Session, run: Run, state: State, step: int | None) -> State:
    """The state of the best checkpoint, if one counts as such and is not this one."""
    if step is None or step == int(state.step):
        return state
    restored = session.checkpoints.restore({"state": run.program.state, "position": 0}, step)
    session.log.text(f"the best checkpoint counts: that of step {step}")
    return restored["state"]


def _prepare(session: Session[Model], origin: Origin | None) -> Run[Model]:
    """Builds the model, places it, and goes to the newest checkpoint if there is one."""
    task, config, mesh, log = session.task, session.config, session.mesh, session.log
    model = task.build()
    log.text(summary(model, config.trainable, depth=2))
    parts: Partition = split(model, config.trainable)
    if config.parallel.frozen_dtype == INT8:
        remember_matrices(model, parts.frozen)
        parts = split(model, config.trainable)
    del model
    log.text(optimizer_tables(parts.trainable, task, config))
    program = make_program(parts, task, config, mesh)
    types = types_of(parts) if origin else {}
    frozen = store(parts.frozen, config.parallel.frozen_dtype)
    log.text(f"frozen weights take {human_bytes(num_bytes(frozen))} on the devices")
    frozen = sharding.place(frozen, jax.tree.map(lambda leaf: leaf.sharding, program.frozen))
    initial = sharding.place(parts.trainable, program.shardings.trainable)

    def begin(trainable: Tree, variables: Tree) -> State:
        return begin_at(program.begin(trainable, variables), origin.step if origin else 0)

    if session.checkpoints.latest() is not None:
        state = _restored(session, program)
    else:
        # Jitted, so that it is a copy: steps donate the state, and `initial` must outlive them.
        state, position = jax.jit(begin, out_shardings=program.shardings)(initial, parts.state), 0
        if origin is not None:
            state, position = _forked(session, origin, state, types)
        session.stream.seek(position)
    return Run(program, parts.graph, frozen, initial, state)


def _restored(session: Session, program: Program) -> State:
    """The state of the newest checkpoint; the stream goes to its place."""
    checkpoints, newest = session.checkpoints, session.checkpoints.latest()
    restored = checkpoints.restore({"state": program.state, "position": 0})
    state = restored["state"]
    session.stream.seek(restored["position"])
    if checkpoints.restored != newest:  # that one was damaged
        session.log.rewind(int(state.step))
    session.log.text(f"going on from step {int(state.step)}")
    return state


def _forked(
    session: Session, origin: Origin, state: State, types: Mapping[str, str]
) -> tuple[State, int]:
    """Take what a fork starts with, and save it: from here on it does without the other workdir."""
    state, position, remarks = take_over(origin, state, types)
    for remark in remarks:
        session.log.text(remark)
    tree = {"state": state, "position": position}
    session.checkpoints.save(origin.step, tree, about=session.about, wait=True)
    return state, position


def _compile(session: Session, run: Run) -> Callable[..., Any]:
    began = time.perf_counter()
    batch = sharding.place_batch(session.example, session.mesh)
    compiled, found, warnings = session.programs.compile(run.program.trace(batch).lower())
    for warning in warnings:
        session.log.text(f"warning: {warning}")
    how = "taken from the compilation cache" if found else "compiled"
    line = f"step {how} in {time.perf_counter() - began:.1f} s"
    memory = compiled.memory_analysis()
    if memory:  # not every backend tells
        used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        line += f"; it takes {human_bytes(used)} on each device"
    session.log.text(line)
    return compiled


def _stopped(start: int, done: int) -> str:
    where = f"after step {done}, saved" if done > start else f"before step {done + 1}"
    return f"stopped by a signal {where}; the same command goes on"


def _whole(tree: Tree, mesh: Mesh) -> Tree:
    """A tree as each process can use it alone: unsharded, in float32, on one local device."""
    tree = jax.device_put(cast(tree, jnp.dtype("float32")), sharding.replicated(mesh))
    return in_use(jax.tree.map(lambda leaf: leaf.addressable_data(0), tree), jnp.float32)


def _describe(mesh: Mesh, config: Any) -> str:
    device = mesh.devices.flat[0]
    kind = device.device_kind
    names = [f"{mesh.size} x {kind}" + f" ({device.platform})" * (kind != device.platform)]
    if jax.process_count() > 1:
        names.append(f"{jax.process_count()} processes")
    names.append(f"mesh data={mesh.shape['data']} fsdp={mesh.shape['fsdp']}")
    parallel = config.parallel
    names.append(f"compute {parallel.step.compute_dtype}, frozen {parallel.frozen_dtype}")
    return "; ".join(names) + ", trained float32"


def _check(config: Any, devices: int) -> None:
    for name in ("log_every", "checkpoint_every"):
        if config.run[name] < 1:
            raise ConfigError(f"config.run.{name}={config.run[name]}; it is a number of steps")
    check_batch(config, devices)
