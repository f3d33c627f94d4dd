"""The parts of a run, wherever they lie: its settings, its adapter file, its base weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vadapt.errors import ConfigError
from vadapt.run import ABOUT
from vadapt.training.claim import read_json
from vadapt.weights.adapter_file import AdapterInfo, read_info
from vadapt.weights.files import READERS
from vadapt.weights.hub import ADAPTER, PREFIX, local_adapter
from vadapt.weights.sources import ASSETS


class FoundRun(NamedTuple):
    """The parts of a run that are there."""

    name: str
    config: Any
    known: Mapping[str, Any]  # see `training.task.Task`
    folders: tuple[Path, ...]  # in which relative paths may start, the likeliest first
    workdir: Path
    info: AdapterInfo | None  # of a finished run


def find_run(run: str | Path) -> FoundRun:
    """Find the parts of a run; see `trained.load_run` for its argument and errors."""
    name = str(run)
    if not name.startswith(PREFIX):
        run = Path(run).expanduser()
        if not run.exists():
            raise ConfigError(f"no run at {name!r}: neither a workdir nor an adapter file")
        path = run / ADAPTER if run.is_dir() else run
    else:
        path = local_adapter(name)
    workdir = path.parent.absolute()
    held, about = read_json(workdir / "config.json"), read_json(workdir / ABOUT)
    info = read_info(path) if path.is_file() else None
    settings = held
    if info is not None:
        settings = dict(info.extra.get("config") or held)
        # Where the data lie, of files of older versions that do not name the classes.
        settings["data"] = {**held.get("data", {}), **settings.get("data", {})}
        about = {**about, **_known(info)}
    if not settings.get("model") or (info is None and not (workdir / "checkpoints").is_dir()):
        raise ConfigError(
            f"{name!r} holds no run to use: {ADAPTER}, which python -m vadapt.main leaves in its "
            "--workdir, or config.json and checkpoints of a run that is not finished"
            if info is None
            else f"{name!r} does not say how its model is built, as adapter files of finished runs "
            "do: put it beside the config.json of its run, or take vadapt.adapt_from(model, file)"
        )
    known = {key: about[key] for key in ("classes", "palette") if about.get(key)}
    starts = [workdir / about["from_here"], Path(about["folder"])] if "folder" in about else []
    folders = (*starts, Path.cwd(), workdir, *workdir.parents)
    return FoundRun(name, ConfigDict(settings), known, folders, workdir, info)


def _known(info: AdapterInfo) -> dict[str, Any]:
    found = {"classes": info.classes, "palette": info.extra.get("palette")}
    return {key: value for key, value in found.items() if value}


def with_value(config: Any, section: str, name: str, value: Any) -> Any:
    """Settings with one of them changed."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config[section][name] = str(value)
    return config


def places(name: str | Path, folders: Sequence[Path]) -> Iterator[Path]:
    """Find a path of a config in these folders, by all of it and then by its last part."""
    path, seen = Path(name).expanduser(), set()
    for tail in (path, Path(path.name)):
        for folder in folders:
            place = folder / tail
            if place.exists() and (real := place.resolve()) not in seen:
                seen.add(real)
                yield real


def candidates_of(name: str, given: str | Path, folders: Sequence[Path]) -> Iterator[str]:
    """Sources of the base weights that a config calls `name`, the likeliest first."""
    for source in (str(given),) if given else (name,):
        if not source or source.startswith(PREFIX) or (ASSETS / f"{source}.safetensors").is_file():
            yield source
            continue
        for place in [Path(source).expanduser()] if given else places(source, folders):
            yield str(place)
            if given and place.is_dir():
                yield from (str(p) for p in sorted(place.iterdir()) if p.suffix in READERS)
