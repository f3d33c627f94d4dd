"""Every method on the shipped backbone, on scenes: `python -m benchmarks.adapters`.

All methods have the same linear head, see the same images, and take as many steps of as many
images. The rate of each has the best score on 256 validation scenes with the first seed, of a
ladder of factors of 4: two rates (`RATES`, or `LOW_RATES`), then on in the better direction until
the score falls, at most five in all (the table says so where it ended there).
Then come the other seeds. Runs that the file holds are not done again, so that the command may be
stopped and given again; three hours on two cores. `--costs` times a step of every method, in turns;
it wants the machine for itself. `--kept` runs nothing: it writes the page of what is there.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import side_by_side
from benchmarks.adapter_methods import BATCH, METHODS, TASKS, Task, config_of
from benchmarks.input_recipes import ROOT
from benchmarks.seeds import Row, measure
from vadapt.drawing import save_png
from vadapt.plots import Point, draw_points
from vadapt.tasks import make_task
from vadapt.training.loop import Outcome
from vadapt.weights.adapter_file import save_adapter

SCORES = {"miou": "mean IoU, percent", "top1": "top-1 accuracy, percent"}
RESULTS = ROOT / "benchmarks/results"
_STEP, _MOST = 4, 5  # between rates, and how many are tried


class Runs:
    """Rows in a file of JSON lines."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()]

    def add(self, row: Row) -> None:
        """Keeps one more."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def of(self, **fields: Any) -> list[Row]:
        """Those with these fields."""
        return [row for row in self.rows if all(row.get(k) == v for k, v in fields.items())]

    def searched(self, task: str, method: str, seed: int) -> dict[float, float]:
        """Validation scores of the rates that were tried, the least rate first."""
        rows = self.of(task=task, method=method, seed=seed)
        return dict(sorted((row["rate"], row["validation"]) for row in rows))

    def best_rate(self, task: str, method: str, seed: int) -> float | None:
        """The rate of the best validation score, the least of equals; None while it is sought."""
        found = self.searched(task, method, seed)
        if next_rate(found, METHODS[method].rates) is not None:
            return None
        return max(found, key=lambda rate: (found[rate], -rate))


def next_rate(found: Mapping[float, float], begin: tuple[float, float]) -> float | None:
    """The rate that a search tries next, beyond the best one while it is at an end; None: done.

    >>> next_rate({}, (1.0, 4.0)), next_rate({1.0: 30, 4.0: 40}, (1.0, 4.0))
    (1.0, 16.0)
    >>> next_rate({1.0: 30, 4.0: 40, 16.0: 20}, (1.0, 4.0))
    """
    untried = [rate for rate in begin if rate not in found]
    if untried or len(found) >= _MOST:
        return untried[0] if untried else None
    best = max(found, key=lambda rate: (found[rate], -rate))
    if best == max(found):
        return best * _STEP
    return best / _STEP if best == min(found) else None


def score_of(task: Task, config: Any, model_task: Any, outcome: Outcome) -> dict[str, float]:
    """What a run's row says besides its settings."""
    found = {}
    for on in ("validation", "test"):
        found |= model_task.evaluate(outcome.model, on)
    names = ("validation", *config.test)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.safetensors"
        save_adapter(path, outcome.model, trainable=config.trainable)
        size = path.stat().st_size
    return {**{name: found[f"{name}/{task.metric}"] for name in names}, "file_bytes": size}


def wanted(
    runs: Runs, tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]
) -> Iterator[tuple[str, str, float, int]]:
    """Runs that are not done yet, as (task, method, rate, seed): of each task first the search."""
    for task in tasks:
        for method in methods:
            found = runs.searched(task, method, seeds[0])
            rate = next_rate(found, METHODS[method].rates)
            if rate is not None:
                yield task, method, rate, seeds[0]
        for seed, method in itertools.product(seeds[1:], methods):
            rate = runs.best_rate(task, method, seeds[0])
            if rate is not None and not runs.of(task=task, method=method, seed=seed, rate=rate):
                yield task, method, rate, seed


def run_all(
    runs: Runs,
    tasks: Mapping[str, Task],
    methods: Sequence[str],
    seeds: Sequence[int],
    score: Callable[[Task, Any, Any, Outcome], Mapping[str, float]],
) -> None:
    """Does what is not done yet."""
    # Asked anew after every run: the search decides what comes behind it.
    while job := next(wanted(runs, [*tasks], methods, seeds), None):
        name, method, rate, seed = job
        print(f"--- {name}, {method}, rate {rate:g}, seed {seed}", flush=True)
        task = tasks[name]
        config = config_of(task, METHODS[method], rate, seed)
        row = {"task": name, "method": method, "rate": rate}
        runs.add(row | measure(config, functools.partial(score, task)))
        jax.clear_caches()  # no program serves two runs


class Job(NamedTuple):
    """What all rows of costs have alike."""

    batch: int
    task: str


def build(method: str, job: Job) -> side_by_side.Training:
    """A step of a method, for `side_by_side`."""
    from benchmarks.train_step_job import jax_training

    config = config_of(TASKS[job.task], METHODS[method], METHODS[method].rates[0], 0)
    task = make_task(config)
    with_data = task.stream()
    return jax_training(task, config, next(with_data))


def add_costs(runs: Runs, task: str, methods: Sequence[str], rounds: int) -> None:
    """Times steps, in turns; the file then has a new row of costs for each method."""
    rows = [
        side_by_side.Row(task, "vadapt", name, functools.partial(build, name)) for name in methods
    ]
    for found in side_by_side.measure(rows, Job(BATCH, task), rounds):
        runs.add({"task": task, "costs_of": found["title"], **found})


def table(runs: Runs, task: str, seeds: Sequence[int]) -> str:
    """Scores and costs of all methods, the fewest weights first, as Markdown."""
    tests = TASKS[task].config().test
    titles = ("method", "trains", "file, kB", "rate", *tests, "seeds")
    costs = ("ms a step", "memory, MiB", "compiles in, s")
    lines = []
    for method, rows in chosen(runs, task, seeds).items():
        rate, tried = rows[0]["rate"], runs.searched(task, method, seeds[0])
        edge = " (edge)" if rate in (min(tried), max(tried)) else ""
        cells = [method, f"{rows[0]['trained']:,}", f"{rows[0]['file_bytes'] / 1e3:,.0f}"]
        cells += [f"{rate:g}{edge}", *(spread([row[test] for row in rows]) for test in tests)]
        lines.append([*cells, str(len(rows)), *cost_cells(runs, task, method)])
    lines.sort(key=lambda line: int(line[1].replace(",", "")))
    return side_by_side.markdown((*titles, *costs), lines)


def cost_cells(runs: Runs, task: str, method: str) -> list[str]:
    """The last costs that were measured."""
    found = runs.of(task=task, costs_of=method)
    if not found or "rounds" not in found[-1]:
        return ["", "", ""]
    last = found[-1]
    step = 1e3 * BATCH / float(np.median(last["rounds"]))
    memory = last.get("peak_bytes")
    return [
        f"{step:.0f}",
        "" if memory is None else f"{memory / 2**20:.0f}",
        f"{last['compile_seconds']:.1f}",
    ]


def chosen(
    runs: Runs, task: str, seeds: Sequence[int], methods: Iterable[str] = METHODS
) -> dict[str, list[Row]]:
    """For each method whose rate is known, its runs at that rate."""
    found = {}
    for method in methods:
        if (rate := runs.best_rate(task, method, seeds[0])) is not None:
            rows = runs.of(task=task, method=method, rate=rate)
            found[method] = [row for row in rows if row["seed"] in seeds]
    return found


def spread(scores: Sequence[float]) -> str:
    """Mean and standard deviation, of several."""
    text = f"{np.mean(scores):.1f}"
    return text if len(scores) == 1 else f"{text} ± {np.std(scores):.1f}"


def plot(runs: Runs, task: str, seeds: Sequence[int]) -> np.ndarray:
    """The first test's score against the number of weights that train."""
    test = next(iter(TASKS[task].config().test))
    points = {}
    for method, rows in chosen(runs, task, seeds).items():
        scores = [row[test] for row in rows]
        points[method] = Point(rows[0]["trained"], float(np.mean(scores)), float(np.std(scores)))
    points = dict(sorted(points.items(), key=lambda item: item[1].x))
    title = f"{task}, test set {test}"
    return draw_points(points, title, "weights that train", SCORES[TASKS[task].metric])


def write(runs: Runs, page: Path, seeds: Sequence[int]) -> None:
    """The page's tables, and a picture for each."""
    ready = [task for task in TASKS if chosen(runs, task, seeds)]
    tables: Mapping[str, str] = {task: table(runs, task, seeds) for task in ready}
    page.write_text(side_by_side.fill(page.read_text(encoding="utf-8"), tables), encoding="utf-8")
    pictures = page.with_suffix("")
    pictures.mkdir(exist_ok=True)
    for task in ready:
        save_png(pictures / f"{task}.png", plot(runs, task, seeds))
    print(f"wrote {page}")


def main() -> None:
    """Runs what is not there yet, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, help="instead of the tasks'")
    parser.add_argument("--costs", type=int, default=0, metavar="ROUNDS", help="also time steps")
    parser.add_argument("--kept", action="store_true", help="run nothing")
    parser.add_argument("--runs", type=Path, default=RESULTS / "adapters.jsonl")
    parser.add_argument("--page", type=Path, default=RESULTS / "adapters.md")
    options = parser.parse_args()
    runs = Runs(options.runs)
    if not options.kept:
        steps = {"steps": options.steps} if options.steps else {}
        tasks = {name: TASKS[name]._replace(**steps) for name in options.tasks}
        run_all(runs, tasks, options.methods, options.seeds, score_of)
    for name in options.tasks if options.costs else ():
        add_costs(runs, name, options.methods, options.costs)
    write(runs, options.page, options.seeds)


if __name__ == "__main__":
    main()
