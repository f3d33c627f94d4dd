"""The comparison of methods: what is run in which order, and what its table says."""

import pytest
from flax import nnx

from benchmarks import adapters
from benchmarks.adapter_methods import METHODS, RATES, TASKS, config_of
from tests.test_benchmarks import output_of
from vadapt.partition import count, split
from vadapt.tasks import make_task
from vadapt.training.settings import check_settings

SEEDS = (0, 1)
METHOD = "linear"


@pytest.fixture
def runs(tmp_path):
    return adapters.Runs(tmp_path / "runs.jsonl")


def add(runs, rate, seed, validation, clean=50.0):
    scores = {"validation": validation, "clean": clean, "other": clean / 2}
    row = {"task": "objects", "method": METHOD, "rate": rate, "seed": seed, **scores}
    runs.add({**row, "trained": 2132, "file_bytes": 9000})


def todo(runs):
    return [job[2:] for job in adapters.wanted(runs, ["objects"], [METHOD], SEEDS)]


def test_the_search_goes_on_in_the_better_direction_and_the_best_is_run_with_other_seeds(runs):
    first, second = RATES
    assert todo(runs) == [(first, 0)]
    add(runs, first, 0, 30.0)
    assert todo(runs) == [(second, 0)]
    add(runs, second, 0, 40.0)
    assert todo(runs) == [(4 * second, 0)]
    add(runs, 4 * second, 0, 40.0)
    assert todo(runs) == [(second, 1)]
    add(runs, second, 1, 41.0, clean=54.0)
    assert todo(runs) == []
    again = adapters.Runs(runs.path)
    assert again.rows == runs.rows
    assert todo(again) == []


def test_a_search_goes_down_and_ends_after_five_rates(runs):
    rates = [RATES[1], RATES[0], RATES[0] / 4, RATES[0] / 16, RATES[0] / 64]
    for score, rate in enumerate(rates):
        add(runs, rate, 0, 30.0 + score)
    assert todo(runs) == [(rates[-1], 1)]


def test_the_table_has_mean_and_deviation_and_says_where_the_search_ended(runs):
    for rate, validation in ((RATES[0], 30.0), (RATES[1], 40.0), (4 * RATES[1], 35.0)):
        add(runs, rate, 0, validation)
    add(runs, RATES[1], 1, 41.0, clean=54.0)
    (line,) = adapters.table(runs, "objects", SEEDS).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:7] == [
        *("linear", "2,132", "9", f"{RATES[1]:g}"),
        *("52.0 ± 2.0", "26.0 ± 1.0", "2"),
    ]


@pytest.mark.plans
@pytest.mark.parametrize("name", TASKS)
def test_every_method_goes_with_every_task(name):
    trained = {}
    for title, method in METHODS.items():
        config = config_of(TASKS[name], method, 1e-3, 0)
        task = make_task(config)
        check_settings(config, task)
        model = nnx.eval_shape(lambda task=task: task.build(pretrained=False))
        trained[title] = count(split(model, config.trainable).trainable)
    assert min(trained, key=trained.get) == "linear"
    assert trained["everything"] == max(trained.values())


@pytest.mark.plans
def test_the_command_trains_times_and_writes_what_it_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Methods\n\n<!-- infrared -->\n", encoding="utf-8")
    files = ("--runs", tmp_path / "runs.jsonl", "--page", page)
    few = ("--methods", METHOD, "--seeds", 0, "--steps", 1, "--costs", 1)
    output_of("adapters", "--tasks", "infrared", *few, *files)
    (line,) = [line for line in page.read_text().splitlines() if line.startswith(f"| {METHOD}")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert all(cells)
    assert 0 < float(cells[4]) < 50
    assert (tmp_path / "page" / "infrared.png").stat().st_size > 1000
