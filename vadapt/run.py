"""One run from a config: train, evaluate, and leave in the workdir what people keep."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vadapt.errors import ConfigError, VadaptError
from vadapt.models import methods_of
from vadapt.quantization import INT8
from vadapt.runtime.lock import locked
from vadapt.runtime.storage import writing
from vadapt.tasks import TASKS, make_task
from vadapt.training.checkpoint import Checkpoints
from vadapt.training.claim import FREE, FREE_TO_EVALUATE, check_same, claim, read_json, write_json
from vadapt.training.evaluation import EvaluationSettings
from vadapt.training.fork import Origin, find_origin
from vadapt.training.former_settings import modernize
from vadapt.training.logging import note
from vadapt.training.loop import Outcome, fit, open_checkpoints
from vadapt.training.report import Report, check_number, class_table, write_report
from vadapt.training.settings import check_settings
from vadapt.training.task import Model, Reports, Task
from vadapt.weights.adapter_file import save_adapter, save_model

Config = Any  # a ConfigDict, whose fields no type checker knows

ABOUT = "about.json"
REPORTS = "evaluation"  # a folder with one a test set
# Sections and fields of a config that say how it was trained, from what, or where on this machine.
_OF_TRAINING = (
    *("optimizer", "optimizers", "parallel", "run", "full", "train", "validation", "test"),
    *("streams", "root", "baselines", "total_steps", "batch_size"),
)
_OF_PLACES = ("path", "cache", "tfds_name")


def run(
    config: Config,
    workdir: str | Path,
    *,
    mode: str = "train",
    out: str | Path | None = None,
    start_from: str | Path | None = None,
    devices: Sequence[Any] | None = None,
) -> dict[str, float]:
    """Trains (or goes on), evaluates, and writes `result.json`; returns its numbers.

    The adapter is written as soon as it is trained, scores (`evaluation.json`) as they come: a
    baseline that fails leaves both, and `result.json` without it.

    Args:
        mode: "train", "resume" (a checkpoint must exist) or "evaluate" (no training: scores the
            newest checkpoint, also of an unfinished run, writes `evaluation.json` and the folder
            `evaluation`, see `training.report`, and leaves everything else but pictures, the log
            and compiled programs as it is; other test sets than those of the run may be given, and
            another process may be training there).
        out: evaluating, where to put what is written, by default in the workdir, which is then
            only read.
        start_from: another workdir (or a checkpoint in it, as `DIR/checkpoints/800`), which is only
            read: a new run starts from what was trained there, under settings of its own; see
            `vadapt.training.fork`. It has no say once the new run has a checkpoint. Baselines start
            from nothing.
        devices: to train on; by default all.

    Returns:
        An empty dictionary if a signal stopped the run before its last step.

    Raises:
        ConfigError: the workdir belongs to other settings, another run is at work in it, or it has
            no checkpoint to go on from; a setting that nothing reads.
        TrainingError: a file cannot be written, or see `fit`.
    """
    for change in modernize(config):
        _say(f"note: {change}")
    for each in (config, *([full_training(config)] if config.baselines else ())):
        check_settings(each, TASKS[config.task.name])
    workdir, evaluating = Path(workdir), mode == "evaluate"
    if out is not None and not evaluating:
        raise ConfigError(f"--out={out} goes with --mode=evaluate; --mode={mode} has its --workdir")
    if start_from is not None and evaluating:
        raise ConfigError(f"--from={start_from} is to train; --mode=evaluate scores its --workdir")
    checkpoints = open_checkpoints(config, workdir)
    if mode != "train" and not checkpoints.steps():
        raise ConfigError(
            f"--mode={mode}: no complete checkpoint under {str(workdir)!r}; --mode=train starts one"
        )
    if evaluating:
        out = workdir if out is None else Path(out)
        return _evaluate(config, workdir, checkpoints, out, devices)
    with locked(workdir):
        origin = None
        if start_from is not None:
            origin = find_origin(start_from, workdir, checkpoints, config.total_steps)
        return _train(config, workdir, checkpoints, devices, origin)


def _evaluate(
    config: Config,
    workdir: Path,
    checkpoints: Checkpoints,
    out: Path,
    devices: Sequence[Any] | None,
) -> dict[str, float]:
    """The scores of the newest checkpoint; nothing is written but in `out`."""
    check_same(config, workdir, free=(*FREE, *FREE_TO_EVALUATE))
    config = without_cache(config)
    task = make_task(config)
    latest = checkpoints.latest()
    num_worst = check_number(config.eval.get("num_worst", EvaluationSettings.num_worst))
    outcome = fit(task, config, out, stop_at=latest, devices=devices, checkpoints=checkpoints)
    _, result = _score(task, outcome, out, workdir, num_worst=num_worst)
    return result


def _train(
    config: Config,
    workdir: Path,
    checkpoints: Checkpoints,
    devices: Sequence[Any] | None,
    origin: Origin | None,
) -> dict[str, float]:
    """What `run` does but to evaluate; the workdir is this run's alone."""
    remarks = claim(config, workdir, begun=checkpoints.latest() is not None)
    task = make_task(config)
    if jax.process_index() == 0:
        write_json(workdir / ABOUT, _about(task, workdir))
    options = {"devices": devices, "checkpoints": checkpoints, "remarks": remarks}
    outcome = fit(task, config, workdir, origin=origin, **options)
    if not outcome.finished:
        return {}
    if jax.process_index() == 0:
        with writing(workdir / "adapter.safetensors"):
            _export(task, config, outcome, workdir / "adapter.safetensors")
    failed = None
    scores, result = _score(task, outcome, workdir, workdir, last=not config.baselines)
    if config.baselines:
        try:
            scores |= _baseline(config, workdir, devices)
        except VadaptError as error:
            failed = error  # what was trained before it is reported first
        else:
            if "full" not in scores:
                return {}
        result = _numbers(outcome, scores, workdir)
        _say(closing_table(scores, result, workdir))
    write_json(workdir / "result.json", result)
    if failed is not None:
        raise failed
    return result


def _score(
    task: Task[Model],
    outcome: Outcome[Model],
    out: Path,
    workdir: Path,
    *,
    last: bool = True,
    num_worst: int | None = None,
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Scores by model, and the numbers of `evaluation.json`, which grows with each of them.

    Args:
        last: no other scores follow, so that these are shown.
        num_worst: images on the sheets of a task that reports on its test sets; None: no reports.
    """
    _say("scoring the model ...")
    scores: dict[str, dict[str, float]] = {}
    result: dict[str, float] = {}
    reports: dict[str, Report] = {}
    for name, values in _evaluations(task, outcome, None if num_worst is None else reports):
        scores[name] = values
        result = _numbers(outcome, scores, workdir)
        write_json(out / "evaluation.json", result)
    if last:
        text = closing_table(scores, result, out)
        _say("\n".join([text, *_write_reports(out, reports, num_worst or 0)]))
    return scores, result


def _evaluations(
    task: Task[Model], outcome: Outcome[Model], reports: dict[str, Report] | None
) -> Iterator[tuple[str, dict[str, float]]]:
    """The scores of the model before training, where they say something, and after it.

    Args:
        reports: gets those on the latter, if the task has any.
    """
    initial = None
    if getattr(task, "evaluates_initial", True):
        initial = task.evaluate(outcome.initial)
        yield "frozen", initial
    if reports is not None and isinstance(task, Reports):
        scores, found = task.report(outcome.model)
        reports.update(found)
        yield "adapted", scores
    elif initial is None or outcome.steps:
        yield "adapted", task.evaluate(outcome.model)
    else:
        yield "adapted", initial


def _write_reports(out: Path, reports: Mapping[str, Report], num_worst: int) -> list[str]:
    """Show and write what reports say, by process 0; returns lines about their files."""
    if jax.process_index() > 0:
        return []
    lines = []
    for name, report in reports.items():
        note(out, "\n" + class_table(name, report))
        folder = out / REPORTS / name
        lines.append(f"{folder}: {', '.join(write_report(folder, report, num_worst))}")
    return lines


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
        method=methods_of(config.method.to_dict()) or config.method.to_dict(),
        backbone=config.model.backbone,
        weights=config.model.weights,
        options=dict(task.backbone_options),
        statistics=[np.broadcast_to(x, 3).tolist() for x in (config.data.mean, config.data.std)],
        config=_for_use(config),
        frozen_dtype=INT8 if config.parallel.frozen_dtype == INT8 else None,
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
    return read_json(workdir / "result.json").get("images_per_second", 0.0)


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)
