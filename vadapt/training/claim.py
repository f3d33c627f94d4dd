"""A workdir belongs to one run: its settings are written there, and others are refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from vadapt.data import untrusted
from vadapt.errors import ConfigError, DataError
from vadapt.runtime.storage import writing
from vadapt.training.former_settings import comparable

Config = Any  # a ConfigDict, whose fields no type checker knows

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
# To evaluate, a run may be asked about other data than it was begun with.
FREE_TO_EVALUATE = ("test.", "total_steps")
_MOST_MIB = 64  # of a JSON file of a workdir
_SHOWN = 8  # differences in a message


_log = logging.getLogger("vadapt.training")


def claim(config: Config, workdir: Path, *, begun: bool) -> list[str]:
    """Writes `config.json` into a workdir; refuses one that holds a run of other settings.

    A run may go on for longer than it was begun for: its rates are then those of the longer run's
    schedule from here on, and the numbers of the shorter one are kept as `result_<steps>.json`.

    Args:
        begun: there are checkpoints. Without them, and without a result, nothing is lost by new
            settings, so that whoever mistyped one can start again in the same workdir.

    Returns:
        Lines for the log.

    Raises:
        ConfigError: see `check_same`.
    """
    path, result, remarks = workdir / "config.json", workdir / "result.json", []
    if begun or result.exists():
        free = FREE if _trains_by_tests(config) else (*FREE, "test.")
        check_same(config, workdir, free=free, forks=begun)
        before = read_json(path).get("total_steps", config.total_steps)
        if before < config.total_steps:
            remarks.append(
                f"the run was begun for {before} steps and now goes on to {config.total_steps}: "
                "from here on rates follow the schedule of the longer run"
            )
            if result.exists() and jax.process_index() == 0:
                result.replace(workdir / f"result_{before}.json")
    write_json(path, json.loads(json.dumps(config.to_dict())))
    return remarks


def _trains_by_tests(config: Config) -> bool:
    """Whether the test sets say which checkpoint counts, as where there are no validation sets."""
    return bool(config.eval.get("best", "")) and not config.get("validation")


def check_same(config: Config, workdir: Path, *, free: Sequence[str], forks: bool = False) -> None:
    """Refuse settings that are not those of the run in a workdir.

    Args:
        free: starts of names of settings that may differ.
        forks: whether to say how the run's checkpoints go on under other settings.

    Raises:
        ConfigError: names the settings that differ, with both values; `total_steps` may be more.
    """
    before = read_json(workdir / "config.json")
    if not before:
        if jax.process_index() == 0:
            words = "%s is missing or damaged: nothing tells whether the run had other settings"
            _log.warning(words, workdir / "config.json")
        return
    wanted = json.loads(json.dumps(config.to_dict()))
    there, here = _flat(comparable(before)), _flat(comparable(wanted))
    if here["total_steps"] > there["total_steps"]:
        free = (*free, "total_steps")
    differences = [
        f"config.{key}: {there.get(key, 'absent')!r} there, {here.get(key, 'absent')!r} now"
        for key in sorted({*there, *here})
        if there.get(key, "absent") != here.get(key, "absent") and not key.startswith(tuple(free))
    ]
    if differences:
        more = len(differences) - _SHOWN
        fork = f", with --from={workdir} to go on there from what was trained here" * forks
        raise ConfigError(
            f"{str(workdir)!r} holds a run of other settings:\n  "
            + "\n  ".join(differences[:_SHOWN])
            + (f"\n  and {more} more" if more > 0 else "")
            + f"\nTake another --workdir{fork}, or the old settings to go on."
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in _flat(branch, f"{prefix}{name}.").items()
    }


def read_json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing if it is missing or damaged."""
    try:
        return dict(untrusted.read_json(path, _MOST_MIB))
    except (OSError, DataError, ValueError, TypeError):
        return {}


def write_json(path: Path, content: Any) -> None:
    """Write it whole or not at all, by process 0."""
    if jax.process_index() > 0:
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
