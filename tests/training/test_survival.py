"""Two processes that lose one another: nothing but time is lost, and both say what happened.

The processes have four devices each, over which the optimizer state is split.
"""

import shutil
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.processes import PATIENCE, finish, free_address, python
from tests.training.test_loop import assert_same_run, lines, losses
from tests.training.toy import ToyTask, toy_config
from vadapt.training import loop
from vadapt.training.checkpoint import Checkpoints

STEPS, SAVED = 64, 8
HEARTBEAT = 10  # seconds without a sign of life until jax takes a process for dead; by default 100
RUN = f"""
import sys, jax
from tests.training import toy
initialize = jax.distributed.initialize
jax.distributed.initialize = lambda **options: initialize(
    **options | {{"heartbeat_timeout_seconds": {HEARTBEAT}}}
)
toy.main(*sys.argv[1:])
"""
# Sums over the batch in another order, over twenty steps of float32.
SHARDED = 1e-5


def start(workdir, pause=0.0, number=None, *, stop_at=-1, kill_at=-1):
    """Both processes of a run; the one of that number stops or kills itself before a step."""
    address = free_address()
    return [
        python(
            RUN,
            *(workdir, STEPS, pause, 8, SAVED),
            *((stop_at, kill_at) if own == number else ()),
            devices=4,
            JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(own),
        )
        for own in (0, 1)
    ]


def latest(workdir):
    return Checkpoints(workdir / "checkpoints").latest()


def kill(number, workdir, steps):
    """Goes on with a run, and one of its processes is killed after new steps; how the other ends.

    New are those that were never logged before.
    """
    step = lines(workdir)[-1]["step"] + steps
    processes = start(workdir, 0.0, number, kill_at=step)
    survivor = processes[1 - number]
    try:
        said, errors = survivor.communicate(timeout=PATIENCE)
        assert processes[number].wait(PATIENCE) == -signal.SIGKILL
    finally:
        for process in processes:
            process.kill()
    return SimpleNamespace(said=said, errors=errors, code=survivor.returncode)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two processes that nothing happens to."""
    workdir = tmp_path_factory.mktemp("whole")
    finish(*start(workdir))
    return workdir


@pytest.fixture(scope="module")
def battered(tmp_path_factory):
    """One that is stopped, loses process 1, a part of a checkpoint, process 0, and then ends."""
    workdir = tmp_path_factory.mktemp("battered")
    # Jax takes a second or more to agree on a step.
    stopped, _ = finish(*start(workdir, 0.3, 1, stop_at=3))
    step = latest(workdir)

    # Two more complete checkpoints: the second one is then damaged.
    without_1 = kill(1, workdir, 2 * SAVED + 3)
    damaged = latest(workdir)
    (workdir / "checkpoints" / str(damaged) / "tree" / "manifest.ocdbt").unlink()
    whole_one = latest(workdir)
    without_0 = kill(0, workdir, SAVED + 3)
    again = latest(workdir)
    ended, _ = finish(*start(workdir))
    return SimpleNamespace(
        workdir=workdir,
        stopped=stopped[0],
        step=step,
        without_1=without_1,
        damaged=damaged,
        whole_one=whole_one,
        without_0=without_0,
        again=again,
        ended=ended[0],
    )


def test_sigterm_to_one_process_stops_both_at_one_saved_step(battered):
    said = f"stopped by a signal after step {battered.step}, saved; the same command goes on"
    assert said in battered.stopped
    assert f"going on from step {battered.step}\n" in battered.without_1.said


@pytest.mark.parametrize("lost", ["without_0", "without_1"])
def test_a_process_that_lost_the_other_says_so_and_ends(battered, lost):
    survivor = getattr(battered, lost)
    assert survivor.code == 1
    message = survivor.errors[survivor.errors.index("TrainingError: another process") :]
    assert "go on from the newest checkpoint" in message
    assert "Traceback" not in message


def test_two_processes_agree_to_pass_over_a_damaged_checkpoint(battered):
    assert battered.whole_one < battered.damaged
    log = (battered.workdir / "log.txt").read_text()
    assert f"checkpoint {battered.damaged} in " in log
    assert f"going on from step {battered.whole_one}\n" in log


def test_after_all_that_a_run_ends_as_if_nothing_had_happened(battered, whole):
    assert f"going on from step {battered.again}\n" in battered.ended
    assert battered.again >= battered.whole_one + SAVED
    assert_same_run(battered.workdir, whole)


def resume(workdir, source, *, after, devices, fsdp):
    """Goes on in this process, from a checkpoint of another run."""
    for step in Checkpoints(source / "checkpoints").steps():
        if step <= after:
            place = f"checkpoints/{step}"
            shutil.copytree(source / place, workdir / place)
    shutil.copy(source / "metrics.jsonl", workdir)
    config = toy_config(total_steps=STEPS, parallel={"fsdp": fsdp})
    config.run.update({"log_every": 1, "checkpoint_every": SAVED})
    assert loop.fit(ToyTask(config), config, workdir, devices=jax.devices()[:devices]).finished
    assert f"going on from step {after}\n" in (workdir / "log.txt").read_text()


@pytest.mark.parametrize(("devices", "fsdp"), [(4, 4), (1, 1)])
def test_a_run_of_two_processes_goes_on_in_one(whole, tmp_path, devices, fsdp):
    resume(tmp_path, whole, after=STEPS - SAVED, devices=devices, fsdp=fsdp)
    np.testing.assert_allclose(losses(tmp_path), losses(whole), atol=SHARDED)


def test_a_run_goes_on_with_whole_copies_and_back_to_split_ones(whole, tmp_path):
    copies, split = tmp_path / "copies", tmp_path / "split"
    resume(copies, whole, after=STEPS - 2 * SAVED, devices=8, fsdp=1)
    np.testing.assert_allclose(losses(copies), losses(whole), atol=SHARDED)
    resume(split, copies, after=STEPS - SAVED, devices=8, fsdp=8)
    np.testing.assert_allclose(losses(split), losses(whole), atol=SHARDED)
