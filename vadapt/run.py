"""One run from a config: train, evaluate, and leave in the workdir what people keep."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vadapt.errors import ConfigError, VadaptError
from vadapt.runtime.storage import writing
from vadapt.tasks import TASKS, make_task
from vadapt.training.former_settings import comparable, modernize
from vadapt.training.loop import Outcome, fit, open_checkpoints
from vadapt.training.settings import check_settings
from vadapt.training.task import Model, Task
from vadapt.weights.adapter_file import save_adapter, save_model

Config = Any  # a ConfigDict, whose fields no type checker knows

ABOUT = "about.json"
# Settings that do not change what is trained: a workdir is gone on with under other ones.
FREE = (
    "run.",
    "eval.",
    "baselines",
    "full.",
    "data.path",
    "data.cache",
    "parallel.fsdp",
    "parallel.step.accumulate",
    "parallel.step.remat",
    "parallel.step.scan",
)
# Sections and fields of a config that say how it was trained, from what, or where on this machine.
_OF_TRAINING = (
    *("optimizer", "optimizers", "parallel", "run", "full", "train", "validation", "test"),
    *("streams", "root", "baselines", "total_steps", "batch_size"),
)
_OF_PLACES = ("path", "cache", "tfds_name")
_SHOWN = 8  # differences in a message


def run(
    config: Config,
    workdir: str | Path,
    *,
    mode: str = "train",
    devices: Sequence[Any] | None = None,
) -> dict[str, float]:
    """Trains (or goes on), evaluates, and writes `result.json`; returns its numbers.

    The adapter is written as soon as it is trained, scores (`evaluation.json`) as they come: a
    baseline that fails leaves both, and `result.json` without it.

    Args:
        mode: "train", "resume" (a checkpoint must exist) or "evaluate" (no training: scores the
            newest checkpoint, also of an unfinished run, writes `evaluation.json` and leaves
            everything else but pictures and compiled programs as it is).
        devices: to train on; by default all.

    Returns:
        An empty dictionary if a signal stopped the run before its last step.

    Raises:
        ConfigError: the workdir belongs to other settings, or has no checkpoint to go on from; a
            setting that nothing reads.
        TrainingError: a file cannot be written, or see `fit`.
    """
    for note in modernize(config):
        _say(f"note: {note}")
    for each in (config, *([full_training(config)] if config.baselines else ())):
        check_settings(each, TASKS[config.task.name])
    workdir = Path(workdir)
    checkpoints = open_checkpoints(config, workdir)
    latest = checkpoints.latest()
    if mode != "train" and latest is None:
        raise ConfigError(
            f"--mode={mode}: no complete checkpoint under {str(workdir)!r}; --mode=train starts one"
        )
    evaluating = mode == "evaluate"
    claim(config, workdir, begun=latest is not None, write=not evaluating)
    if evaluating:
        config = without_cache(config)
    task = make_task(config)
    if not evaluating and jax.process_index() == 0:
        _write_json(workdir / ABOUT, _about(task, workdir))
    stop_at = latest if evaluating else None
    outcome = fit(task, config, workdir, stop_at=stop_at, devices=devices, checkpoints=checkpoints)
    if not outcome.finished:
        return {}
    if not evaluating and jax.process_index() == 0:
        with writing(workdir / "adapter.safetensors"):
            _export(task, config, outcome, workdir / "adapter.safetensors")
    _say("scoring the model ...")
    scores: dict[str, dict[str, float]] = {}
    for name, values in _evaluations(task, outcome):
        scores[name] = values
        result = _numbers(outcome, scores, workdir)
        _write_json(workdir / "evaluation.json", result)
    failed = None
    if config.baselines and not evaluating:
        try:
            scores |= _baseline(config, workdir, devices)
        except VadaptError as error:
            failed = error  # what was trained before it is reported first
        else:
            if "full" not in scores:
                return {}
    result = _numbers(outcome, scores, workdir)
    if not evaluating:
        _write_json(workdir / "result.json", result)
    _say(closing_table(scores, result, workdir))
    if failed is not None:
        raise failed
    return result


def _evaluations(
    task: Task[Model], outcome: Outcome[Model]
) -> Iterator[tuple[str, dict[str, float]]]:
    """The scores of the model before training, where they say something, and after it."""
    if not getattr(task, "evaluates_initial", True):
        yield "adapted", task.evaluate(outcome.model)
        return
    initial = task.evaluate(outcome.initial)
    yield "frozen", initial
    yield "adapted", task.evaluate(outcome.model) if outcome.steps else initial


def _baseline(
    config: Config, workdir: Path, devices: Sequence[Any] | None
) -> dict[str, dict[str, float]]:
    """The scores of full training, or nothing if a signal stopped it."""
    _say("baseline: the same run, with everything trained")
    baseline = full_training(config)
    task = make_task(baseline)
    trained = fit(task, baseline, workdir / "full", devices=devices)
    return {"full": task.evaluate(trained.model)} if trained.finished else {}


def _numbers(
    outcome: Outcome, scores: Mapping[str, Mapping[str, float]], workdir: Path
) -> dict[str, float]:
    return {
        "steps": outcome.steps,
        "trainable_parameters": outcome.trainable_parameters,
        "images_per_second": round(outcome.images_per_second, 1) or _former_rate(workdir),
        **{
            f"{key}/{who}": value for who, values in scores.items() for key, value in values.items()
        },
    }


def full_training(config: Config) -> Config:
    """The same run without a method and with everything trained: what adapters are held against.

    Where other settings belong to the method, the recipe's `config.full` says what they are then.
    """
    config = without_cache(config)
    with config.unlocked():
        config.method = ConfigDict({"name": "none"})
        config.update(config.get("full", {}))
    config.trainable = "everything"
    config.baselines = False
    return config


def without_cache(config: Config) -> Config:
    """A copy whose batches hold images: stored features are of no use to it."""
    config = config.copy_and_resolve_references()
    if config.data.get("cache", ""):
        config.data.cache = ""
    return config


def claim(config: Config, workdir: Path, *, begun: bool, write: bool = True) -> None:
    """Writes `config.json` into a workdir; refuses one that holds a run of other settings.

    Args:
        begun: there are checkpoints. Without them, and without a result, nothing is lost by new
            settings, so that whoever mistyped one can start again in the same workdir.

    Raises:
        ConfigError: names the settings that differ, with both values.
    """
    path = workdir / "config.json"
    wanted = json.loads(json.dumps(config.to_dict()))
    if path.exists() and (begun or (workdir / "result.json").exists()):
        before = json.loads(path.read_text(encoding="utf-8"))
        there, here = _flat(comparable(before)), _flat(comparable(wanted))
        differences = [
            f"config.{key}: {there.get(key, 'absent')!r} there, {here.get(key, 'absent')!r} now"
            for key in sorted({*there, *here})
            if there.get(key, "absent") != here.get(key, "absent") and not key.startswith(FREE)
        ]
        if differences:
            more = len(differences) - _SHOWN
            raise ConfigError(
                f"{str(workdir)!r} holds a run of other settings:\n  "
                + "\n  ".join(differences[:_SHOWN])
                + (f"\n  and {more} more" if more > 0 else "")
                + "\nTake another --workdir, or the old settings to go on."
            )
    if write:
        _write_json(path, wanted)


def closing_table(
    scores: Mapping[str, Mapping[str, float]], result: Mapping[str, float], workdir: Path
) -> str:
    """Describe what the run came to, for people."""
    names = list(scores)
    # Of one class or label alone, as "val/iou/road": in `result.json`.
    metrics = [name for name in next(iter(scores.values())) if name.count("/") < 2]
    lines = []
    if metrics:
        width = max(map(len, metrics))
        lines = ["", f"{'':{width}}" + "".join(f"{name:>10}" for name in names)]
        for metric in metrics:
            row = "".join(f"{scores[name][metric]:>10.4f}" for name in names)
            lines.append(f"{metric:{width}}" + row)
    rate = result["images_per_second"]
    lines += [
        "",
        f"{result['steps']} steps, "
        + f"{rate:.0f} images/s, " * bool(rate)
        + f"{result['trainable_parameters']:,} trained parameters",
    ]
    for name, path in (("adapter", "adapter.safetensors"), ("pictures", "pictures")):
        if (workdir / path).exists():
            lines.append(f"{name:8}  {workdir / path}")
    return "\n".join(lines)


def _export(task: Task[Model], config: Config, outcome: Outcome[Model], path: Path) -> None:
    save_adapter(
        path,
        task.export(outcome.model),
        trainable=config.trainable,
        method=config.method.to_dict(),
        backbone=config.model.backbone,
        weights=config.model.weights,
        options=dict(task.backbone_options),
        statistics=[np.broadcast_to(x, 3).tolist() for x in (config.data.mean, config.data.std)],
        config=_for_use(config),
        **_known(task),
    )
    if config.run.save_model:
        save_model(path.with_name("model.safetensors"), outcome.model, config.run.save_model)


def _known(task: Task[Model]) -> dict[str, Any]:
    """Return what the training data say and predicting needs, see `Task`; as JSON."""
    found = {"classes": list(getattr(task, "classes", ()))}
    palette = getattr(task, "palette", None)
    return found if palette is None else {**found, "palette": np.asarray(palette).tolist()}


def _about(task: Task[Model], workdir: Path) -> dict[str, Any]:
    """Return what it takes to use a run before it has an adapter file, wherever it is moved.

    Paths of the config start from `folder`, which lies at `from_here`, seen from the workdir.
    """
    folder = Path.cwd()
    return {
        **_known(task),
        "folder": str(folder),
        "from_here": os.path.relpath(folder, workdir.resolve()),
    }


def _for_use(config: Config) -> dict[str, Any]:
    """The settings of a config that say how to build its model and what that sees of an image."""
    kept = {key: value for key, value in config.to_dict().items() if key not in _OF_TRAINING}
    data = {key: value for key, value in kept["data"].items() if key not in _OF_PLACES}
    return {**kept, "data": data}


def _former_rate(workdir: Path) -> float:
    """Images/s of the session that trained, for one that had nothing left to train."""
    path = workdir / "result.json"
    if not path.exists():
        return 0.0
    return json.loads(path.read_text(encoding="utf-8")).get("images_per_second", 0.0)


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in _flat(branch, f"{prefix}{name}.").items()
    }


def _write_json(path: Path, content: Any) -> None:
    """Write it whole or not at all, by process 0."""
    if jax.process_index() > 0:
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
