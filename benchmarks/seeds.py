"""Runs of several configs over several seeds, kept in a file so that they can be gone on with."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vadapt.tasks import make_task
from vadapt.training.loop import Outcome, fit

Row = dict[str, Any]


class Entry(NamedTuple):
    """One row of a table: a config of `configs/`, its argument, and changes by dotted names."""

    config: Any
    argument: str
    changes: Mapping[str, Any] = {}


def compare(
    description: str | None,
    entries: Mapping[str, Entry],
    score: Callable[[Any, Any, Outcome], Mapping[str, float]],
    columns: Sequence[str],
    *,
    runs: str,
    decimals: int = 4,
) -> None:
    """The command line of such a comparison: runs what its file lacks, and prints the table.

    Args:
        score: of (config, task, outcome) to scores by name.
        columns: the scores to print.
        runs: the file, JSON lines.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="instead of the config's")
    parser.add_argument("--only", nargs="+", choices=entries, default=list(entries))
    parser.add_argument("--runs", type=Path, default=Path(runs))
    options = parser.parse_args()
    options.runs.parent.mkdir(parents=True, exist_ok=True)
    options.runs.touch()
    rows = [json.loads(line) for line in options.runs.read_text().splitlines()]
    done = {(row["name"], row["seed"]) for row in rows}
    for seed in options.seeds:
        for name in options.only:
            if (name, seed) in done:
                continue
            print(f"--- {name}, seed {seed}", flush=True)
            config = config_of(entries[name], seed, options.steps)
            rows.append({"name": name, **measure(config, score)})
            with options.runs.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(table(rows, entries, columns, decimals))


def compare_domains(
    description: str | None, entries: Mapping[str, Entry], metric: str, *, runs: str
) -> None:
    """`compare` by a metric of the test sets that configs have on scenes: clean ones and others."""

    def score(config: Any, task: Any, outcome: Outcome) -> dict[str, float]:
        found = task.evaluate(outcome.model)
        return {name: found[f"{name}/{metric}"] for name in ("clean", "other")}

    compare(description, entries, score, ("clean", "other"), runs=runs, decimals=2)


def config_of(entry: Entry, seed: int, steps: int | None) -> Any:
    """The config of a run of an entry."""
    config = entry.config.get_config(entry.argument)
    config.update_from_flattened_dict({**entry.changes, "seed": seed})
    if steps and config.total_steps:
        config.total_steps = steps
    return config


def measure(config: Any, score: Callable[[Any, Any, Outcome], Mapping[str, float]]) -> Row:
    """The scores of one run, and the minutes that it took with its tests."""
    began = time.perf_counter()
    task = make_task(config)
    with tempfile.TemporaryDirectory() as workdir:
        outcome = fit(task, config, workdir)
    if not outcome.finished:
        raise SystemExit("stopped by a signal; the same command does what is left")
    return {
        "seed": config.seed,
        "steps": outcome.steps,
        "trained": outcome.trainable_parameters,
        **score(config, task, outcome),
        "minutes": (time.perf_counter() - began) / 60,
    }


def table(
    rows: Sequence[Row], names: Mapping[str, Any], columns: Sequence[str], decimals: int
) -> str:
    """Mean and standard deviation over seeds, as Markdown."""
    titles = ["", "seeds", "steps", "trained", *columns, "minutes a run"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name in names:
        runs = [row for row in rows if row["name"] == name]
        if not runs:
            continue
        cells = [name, str(len(runs)), str(runs[0]["steps"]), f"{runs[0]['trained']:,}"]
        for column in columns:
            scores = np.array([run[column] for run in runs])
            cells.append(f"{scores.mean():.{decimals}f} ± {scores.std():.{decimals}f}")
        cells.append(f"{max(run['minutes'] for run in runs):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
