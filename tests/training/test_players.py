"""Two players, a teacher and a queue: the same however a batch is cut, and after a kill."""

import signal

import jax
import numpy as np
import pytest

from tests.processes import finish, free_address, python
from tests.training.test_loop import assert_same_run, lines, stored
from tests.training.toy_players import TASKS, config_of
from vadapt.errors import ConfigError
from vadapt.training import loop
from vadapt.training.checkpoint import Checkpoints
from vadapt.training.task import Task

ROUNDING = 2e-5  # sums in another order, over eight steps of float32


def fit(name, workdir, devices=1, **parallel):
    config = config_of(**parallel)
    return loop.fit(TASKS[name](config), config, workdir, devices=jax.devices()[:devices])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Each task's run on one device, with its model."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, {name: fit(name, folder / name).model for name in TASKS}


def assert_alike(one, other):
    for left, right in zip(lines(one), lines(other), strict=True):
        assert left == pytest.approx(right, abs=ROUNDING)
    theirs = stored(other)
    for name, value in stored(one).items():
        np.testing.assert_allclose(value, theirs[name], atol=ROUNDING, err_msg=name)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("cut", [{"accumulate": 4}, {"fsdp": 4}, {"accumulate": 2, "fsdp": 2}])
def test_a_batch_can_be_cut_in_any_way(whole, tmp_path, name, cut):
    fit(name, tmp_path, devices=cut.get("fsdp", 1), **cut)
    assert_alike(tmp_path, whole[0] / name)


def test_two_processes_do_what_one_does(whole, tmp_path):
    address = free_address()
    code = "import sys; from tests.training import toy_players as toy; toy.main(*sys.argv[1:])"
    processes = [
        python(
            code,
            *(tmp_path, *TASKS),
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(number),
        )
        for number in (0, 1)
    ]
    finish(*processes)
    for name in TASKS:
        assert_alike(tmp_path / name, whole[0] / name)


def test_killed_runs_end_as_if_nothing_had_happened(whole, tmp_path):
    code = (
        "import tests.conftest, sys; from tests.training import toy_players as toy; "
        "toy.main(*sys.argv[1:], kill_at=6)"
    )
    killed = [python(code, tmp_path, name, devices=8) for name in TASKS]
    for process in killed:
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    for name in TASKS:
        assert (Checkpoints(tmp_path / name / "checkpoints").latest() or 0) < 6
        fit(name, tmp_path / name)
        assert_same_run(tmp_path / name, whole[0] / name)


def test_each_player_has_its_losses_and_its_rate(whole):
    last = lines(whole[0] / "players")[-2]
    assert last["loss"] == pytest.approx(last["generator/loss"] + last["critic/loss"], abs=1e-6)
    assert last["critic/learning_rate"] == pytest.approx(3 * last["generator/learning_rate"])
    first = lines(whole[0] / "players")[0]
    assert last["critic/loss"] < first["critic/loss"]


def test_a_teacher_follows_once_a_step_and_only_after_it(whole, tmp_path):
    model = whole[1]["teacher"]
    begun = TASKS["teacher"](config_of()).build()
    # The loss adds one to the bias of the teacher, eight times: nothing of it is left.
    assert np.abs(model.other.bias[...]).max() < 0.5
    gone = np.asarray(model.other.kernel[...]) - 0.9**8 * np.asarray(begun.other.kernel[...])
    assert np.abs(gone - (1 - 0.9**8) * np.asarray(model.head.kernel[...])).max() < 0.1
    half = fit("teacher", tmp_path, compute_dtype="bfloat16", accumulate=2).model
    # Its master is float32: the steps of a tenth are not lost to rounding.
    np.testing.assert_allclose(half.other.kernel[...], model.other.kernel[...], atol=0.02)


def test_a_queue_holds_the_last_rows_in_their_order(whole):
    model = whole[1]["queue"]
    assert int(model.other.seen[...]) == 8 * config_of().batch_size


def test_what_trains_is_one_players(tmp_path):
    task = TASKS["players"](config_of())
    players = task.players()
    task.players = lambda: players[:1]
    with pytest.raises(ConfigError, match="'other/bias' trains and is of 0 players"):
        loop.fit(task, task.config, tmp_path, devices=jax.devices()[:1])


def test_tasks_meet_the_contract():
    from vadapt.tasks import TASKS as KNOWN

    for name in KNOWN:
        missing = {x for x in vars(Task) if not x.startswith("_")} - {*dir(KNOWN[name])}
        assert not missing - {"config"}, (name, missing)
