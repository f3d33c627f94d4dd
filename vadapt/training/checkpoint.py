"""The checkpoints of a run: written in the background, complete or absent, readable on any mesh."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vadapt.errors import ConfigError, VadaptError, WeightsError, nearest
from vadapt.runtime.distributed import from_first
from vadapt.runtime.storage import cannot_write
from vadapt.training.stored_tree import as_dict, read_tree, stored_kinds
from vadapt.weights.digests import find_change
from vadapt.weights.orbax_files import find_damage, one_line, sealing

# orbax is imported inside the functions: it costs 0.2 s, which `import vadapt` should not pay.

_TREE, _METRICS, _ABOUT = "tree", "scores", "about"  # the items of a step's directory
logger = logging.getLogger("vadapt.training")


class Checkpoints:
    """Saves and restores a tree of arrays under `directory/<step>`, through orbax.

    A tree is any pytree of jax arrays, NumPy arrays and numbers; optax states too. It is
    stored as plain nested dicts of strings (`blocks/0/scale`), so a file never depends on a class,
    and rebuilt in the structure that the reader gives. Typed PRNG keys are refused: store
    `jax.random.key_data(key)`. With several processes, every one calls every method.

    Args:
        directory: usually `WORKDIR/checkpoints`; made by the first `save`. `gs://` works.
        keep_last: how many of the newest stay.
        keep_best: also keep the one that is best by `best_metric`, wherever it lies.
        best_metric: a key of the `metrics` that `save` is given; saves without metrics, or where it
            is not finite, are never the best.
        best_mode: "min" or "max".

    >>> import tempfile
    >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
    ...     checkpoints.save(7, {"scale": np.ones(3, np.float32)}, wait=True)
    ...     checkpoints.latest(), checkpoints.restore({"scale": np.zeros(3, np.float32)})
    (7, {'scale': array([1., 1., 1.], dtype=float32)})
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int = 3,
        keep_best: bool = True,
        best_metric: str = "loss",
        best_mode: str = "min",
    ):
        if best_mode not in ("min", "max"):
            raise ConfigError(f"best_mode is {best_mode!r}; allowed: 'min', 'max'")
        if keep_last < 1:
            raise ConfigError(f"keep_last is {keep_last}; at least 1, the newest is always kept")
        name = os.fspath(directory)
        self.directory = name if "://" in name else os.path.abspath(name)
        self.keep_last, self.keep_best = keep_last, keep_best
        self.best_metric, self.best_mode = best_metric, best_mode
        self.restored: int | None = None  # the step that the last `restore` read
        self._ours: set[int] = set()  # steps that this object wrote or read, so known to be good
        self._sound: set[int] = set()  # steps whose files `latest` has read through
        self._saving = -1
        self._scores: dict[int, float] = {}

    def save(
        self,
        step: int,
        tree: Any,
        *,
        metrics: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
        wait: bool = False,
    ) -> None:
        """Writes `tree` as checkpoint `step`, in the background unless `wait`.

        The arrays are copied before this returns: they may be donated or changed at once. The
        directory gets its name only when everything is in it. A step that this object has written
        or restored is not written again, nor are its metrics; a step left by another run is
        replaced, and later steps, which belong to a continuation that was abandoned, are removed
        once this one is complete.

        Args:
            about: what else there is to say of it, as JSON has it; the first process's counts.

        Raises:
            ConfigError: `metrics` is given without `best_metric`.
            WeightsError: a leaf that cannot be stored.
            TrainingError: this one, or the one before it, cannot be written.
        """
        import orbax.checkpoint as ocp

        step = int(step)
        score = self._check_metrics(metrics)
        if step not in self._ours:
            stored = as_dict(tree)
            self.wait()
            items: dict[str, Any] = {_TREE: ocp.args.PyTreeSave(stored)}
            if metrics:
                # JSON knows no NaN: what is not finite is stored as null.
                values = {name: float(value) for name, value in metrics.items()}
                finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
                items[_METRICS] = ocp.args.JsonSave(finite)
            if about:
                items[_ABOUT] = ocp.args.JsonSave(dict(about))
            self._saving, self._scores[step] = step, score
            with self._writing():
                if step in self._manager.all_steps():
                    self._manager.delete(step)
                self._manager.save(step, args=ocp.args.Composite(**items), force=True)
            self._ours.add(step)
        if wait:
            self.wait()

    def restore(self, abstract: Any, step: int | None = None, *, partial: bool = False) -> Any:
        """Reads checkpoint `step`, by default the newest that can be read.

        Args:
            abstract: the tree to fill. `jax.ShapeDtypeStruct`s with a sharding, or jax arrays, give
                jax arrays so sharded, whatever mesh wrote them; NumPy arrays and structs without a
                sharding give NumPy arrays; numbers give their own type.
            step: without it, a newest checkpoint with damaged files is reported as a warning of the
                logger "vadapt.training" and the one before it is tried. `restored` says which.
            partial: the checkpoint may hold more than `abstract`; it is left unread.

        Raises:
            WeightsError: another structure, shape or dtype than `abstract`; or nothing readable.
        """
        self.wait()
        found = self.steps()
        candidates = found[::-1] if step is None else [int(step)]
        if not candidates or candidates[0] not in found:
            what = "checkpoint" if step is None else f"checkpoint {step}"
            raise WeightsError(f"no complete {what} in {self.directory}; it has {found}")
        failures = []
        for candidate in candidates:
            tree, failure = self._try(candidate, abstract, partial)
            if failure is None:
                self._ours.add(candidate)
                self.restored = candidate
                return tree
            failures.append(f"{candidate}: {failure}")
            if candidate != candidates[-1]:
                self._warn(candidate, failure)
        others = [other for other in found if other not in candidates]
        hint = f"; restore one of {others} instead" if others else ""
        raise WeightsError(
            f"no readable checkpoint in {self.directory}{hint}. " + "; ".join(failures)
        )

    def kinds(self, step: int) -> dict[str, str]:
        """Types and shapes in a checkpoint, as `float32[3,4]`, by names joined with slashes."""
        return stored_kinds(self._path(step))

    def about(self, step: int) -> dict[str, Any]:
        """The `about` of `save`; nothing in older checkpoints, or where it is damaged."""
        return from_first(lambda: self._json(step, _ABOUT, "the remarks"))

    def steps(self) -> list[int]:
        """The complete checkpoints on disk, oldest first; half-written ones are not among them."""
        import orbax.checkpoint as ocp

        def look() -> list[int]:
            # A process killed while it deletes an old step leaves a directory without its table.
            paths = ocp.utils.checkpoint_steps_paths(self.directory)
            paths = [path for path in paths if path.name.isdigit()]
            return sorted(int(p.name) for p in paths if (p / _TREE / "_METADATA").exists())

        return from_first(look)

    def latest(self) -> int | None:
        """The newest complete checkpoint, the one that `restore` would read.

        One that is still being written does not count, see `wait`. The files of a step that this
        object has not written are read through: a damaged one is passed over with a warning, unless
        all are; then the newest is named, and `restore` says what is wrong.
        """
        found = self.steps()
        for step in reversed(found):
            failure = None if step in self._ours | self._sound else self._damage(step)
            if failure is None:
                self._sound.add(step)
                return step
            self._warn(step, failure)
        return max(found, default=None)

    def best(self) -> int | None:
        """The complete checkpoint with the best finite `best_metric`, the newer of equal ones."""
        return self._best_of(self.steps())

    def wait(self) -> None:
        """Returns when the save in progress is on disk.

        Raises:
            TrainingError: it cannot be written; those before it are still there.
        """
        if "_manager" in self.__dict__:
            with self._writing():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the save in progress and ends the background threads; `save` starts anew."""
        if "_manager" in self.__dict__:
            with self._writing():
                self.__dict__.pop("_manager").close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        # Of two errors the first is the one to hear: the second usually follows from it.
        with contextlib.suppress(Exception) if error else contextlib.nullcontext():
            self.close()

    @functools.cached_property
    def _manager(self) -> Any:
        import orbax.checkpoint as ocp

        # orbax's own policies would delete a step saved after going back to an older one.
        policy: Any = types.SimpleNamespace(should_preserve=self._stays)
        # It logs each failure several times, in pages of traceback; `_writing` says it in one line.
        logging.getLogger("absl").addFilter(_is_no_echo)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            cleanup_tmp_directories=True,  # what killed runs left half-written
        )
        handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
        tree, scores = sealing(ocp.PyTreeCheckpointHandler)(), sealing(ocp.JsonCheckpointHandler)()
        handlers.add(_TREE, ocp.args.PyTreeSave, tree)
        about = sealing(ocp.JsonCheckpointHandler)()
        handlers.add(_METRICS, ocp.args.JsonSave, scores)
        handlers.add(_ABOUT, ocp.args.JsonSave, about)
        return ocp.CheckpointManager(self.directory, options=options, handler_registry=handlers)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Names the checkpoint that cannot be written; orbax tells it at the next call only."""
        try:
            yield
        except (VadaptError, jax.errors.JaxRuntimeError):  # the latter: a process is gone
            raise
        except Exception as error:  # tensorstore and orbax raise many types
            self._ours.discard(self._saving)
            raise cannot_write(f"{self.directory}/{self._saving}", error) from error

    def _stays(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which checkpoints stay; orbax asks during a save and deletes after its commit."""
        past = sorted(info.step for info in checkpoints if info.step <= self._saving)
        later = sorted(info.step for info in checkpoints if info.step > self._saving)
        if later:
            logger.warning(
                "checkpoints %s are removed: the run went back and saved %s", later, self._saving
            )
        keep = {*past[-self.keep_last :], self._best_of(past) if self.keep_best else None}
        return [info.step in keep for info in checkpoints]

    def _check_metrics(self, metrics: Mapping[str, Any] | None) -> float:
        if not metrics:
            return math.nan
        if self.best_metric in metrics:
            return float(metrics[self.best_metric])
        if self.keep_best:
            raise ConfigError(
                f"best_metric is {self.best_metric!r}, but the metrics are without it; "
                f"{nearest(self.best_metric, metrics)}"
            )
        return math.nan

    def score(self, step: int) -> float:
        """The `best_metric` that a checkpoint was saved with; NaN without one."""
        if step not in self._scores:
            value = self._json(step, _METRICS, "the scores").get(self.best_metric)
            known = isinstance(value, int | float)
            self._scores[step] = float(value) if known else math.nan
        return self._scores[step]

    def _json(self, step: int, item: str, what: str) -> dict[str, Any]:
        """An item of a checkpoint besides its tree; nothing if it is not there, or damaged."""
        folder = self._folder(step) / item
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            changed = find_change(folder)
            if not changed:
                return dict(json.loads((folder / "metadata").read_text()))
            place = f"checkpoint {step} in {self.directory}"
            logger.warning("%s of %s are damaged (%s)", what, place, changed)
        return {}

    def _best_of(self, steps: Sequence[int]) -> int | None:
        sign = -1.0 if self.best_mode == "min" else 1.0
        scored = [(sign * self.score(step), step) for step in steps]
        return max((pair for pair in scored if math.isfinite(pair[0])), default=(0.0, None))[1]

    def _warn(self, step: int, failure: str) -> None:
        place = f"checkpoint {step} in {self.directory}"
        logger.warning("%s is damaged, trying the one before it (%s)", place, failure)

    def _folder(self, step: int) -> Any:
        from etils import epath

        return epath.Path(self.directory) / str(step)

    def _path(self, step: int) -> Any:
        return self._folder(step) / _TREE

    def _damage(self, step: int) -> str | None:
        return _agree(find_damage(self._path(step)) if jax.process_index() == 0 else None)

    def _try(self, step: int, abstract: Any, partial: bool) -> tuple[Any, str | None]:
        """The tree of one checkpoint, or in one line why it cannot be read: damage, not misfit."""
        failure = None if step in self._sound else self._damage(step)
        if failure is not None:
            return None, failure
        tree, misfit = None, None
        try:
            title = f"checkpoint {step}"
            tree = read_tree(self._path(step), abstract, title, partial=partial)
        except WeightsError as error:
            misfit = error
        except Exception as error:  # tensorstore and orbax raise many types
            failure = one_line(error)
        failure = _agree(failure)
        if misfit is not None:
            raise misfit
        return tree, failure


def _is_no_echo(record: logging.LogRecord) -> bool:
    """False for a traceback that orbax logs of an error that it also raises."""
    return not (record.exc_info and "/orbax/checkpoint/" in record.pathname)


def _agree(failure: str | None) -> str | None:
    """The same verdict in all processes: one alone may meet the damage, all must then go on."""
    if jax.process_count() == 1:
        return failure
    from jax.experimental import multihost_utils

    failed = np.any(multihost_utils.process_allgather(np.asarray(failure is not None)))
    return failure or ("another process could not read it" if failed else None)
