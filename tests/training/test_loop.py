"""The loop: what was interrupted ends as if nothing had happened, on any number of devices."""

import functools
import json
import os
import random
import re
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.processes import default_signals, python
from tests.training.toy import ToyModel, ToyTask, caches_of_their_own, full_disk, toy_config
from vadapt.errors import ConfigError, TrainingError
from vadapt.runtime.interrupt import StopSignal
from vadapt.training import loop
from vadapt.training.checkpoint import Checkpoints

# Sums over the batch in another order, over a dozen steps of float32.
SHARDED = 1e-5


def fit(config, workdir, devices=1, **options):
    return loop.fit(ToyTask(config), config, workdir, devices=jax.devices()[:devices], **options)


def stored(workdir, step=None):
    """Everything in a checkpoint (weights, optimizer, counters, position) by its name."""
    import orbax.checkpoint as ocp
    from etils import epath

    step = Checkpoints(workdir / "checkpoints").latest() if step is None else step
    path = epath.Path(workdir) / "checkpoints" / str(step) / "tree"
    handler = ocp.PyTreeCheckpointHandler()
    as_numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    names = handler.metadata(path).tree
    wanted = jax.tree.map(lambda _: as_numpy, names)
    tree = handler.restore(path, args=ocp.args.PyTreeRestore(item=names, restore_args=wanted))
    handler.close()
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def lines(workdir):
    """metrics.jsonl without the time of day."""
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "time"} for line in found]


def losses(workdir):
    return np.array([line["loss"] for line in lines(workdir)])


def assert_same_run(left, right):
    assert lines(left) == lines(right)
    ours, theirs = stored(left), stored(right)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    with caches_of_their_own():
        outcome = fit(toy_config(), workdir)
    return workdir, outcome


def test_a_run_learns_and_says_what_it_did(uninterrupted):
    workdir, outcome = uninterrupted
    assert outcome.finished
    assert outcome.steps == 12
    assert outcome.images_per_second > 0
    assert [line["step"] for line in lines(workdir)] == [2, 4, 6, 8, 10, 12]
    assert losses(workdir)[-1] < losses(workdir)[0]
    assert Checkpoints(workdir / "checkpoints").steps() == [4, 8, 12]
    log = (workdir / "log.txt").read_text()
    for said in (
        "1 x cpu",
        "mesh data=1 fsdp=1",
        "trainable: 16,512",
        "compiled in",
        "KiB on each",
    ):
        assert said in log


def test_training_leaves_the_frozen_and_the_initial_weights_alone(uninterrupted):
    _, outcome = uninterrupted
    fresh = ToyModel(nnx.Rngs(0))
    for model in (outcome.initial, outcome.model):
        np.testing.assert_array_equal(model.backbone.kernel[...], fresh.backbone.kernel[...])
    np.testing.assert_array_equal(outcome.initial.head.kernel[...], fresh.head.kernel[...])
    assert np.abs(outcome.model.head.kernel[...] - fresh.head.kernel[...]).max() > 0


@pytest.mark.parametrize(
    ("batch", "step", "said"),
    [(1, 0, "before step 1"), (6, 6, "after step 6, saved")],  # the first is read to compile
)
def test_a_run_stopped_by_sigterm_goes_on_bit_for_bit(
    uninterrupted, tmp_path, capsys, batch, step, said
):
    before = signal.getsignal(signal.SIGTERM)
    config = toy_config()
    config.task.stop_at = batch
    stopped = fit(config, tmp_path)
    assert not stopped.finished
    assert stopped.steps == step
    assert f"stopped by a signal {said}; the same command goes on" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
    assert fit(toy_config(), tmp_path).finished
    assert_same_run(tmp_path, uninterrupted[0])


def test_a_finished_run_is_left_as_it_is(uninterrupted, tmp_path):
    workdir, outcome = uninterrupted
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    again = fit(toy_config(), tmp_path)
    assert (again.finished, again.steps, again.images_per_second) == (True, 12, 0)
    assert_same_run(tmp_path, workdir)
    kernels = [result.model.head.kernel[...] for result in (again, outcome)]
    np.testing.assert_array_equal(*kernels)


def test_an_evaluation_of_an_unfinished_run_drops_no_lines(uninterrupted, tmp_path):
    workdir, _ = uninterrupted
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "12")
    outcome = fit(toy_config(), tmp_path, stop_at=8)
    assert (outcome.finished, outcome.steps) == (True, 8)
    assert lines(tmp_path) == lines(workdir)


def test_behind_a_damaged_checkpoint_the_one_before_goes_on(uninterrupted, tmp_path):
    workdir, _ = uninterrupted
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "12" / "tree" / "manifest.ocdbt").unlink()
    assert fit(toy_config(), tmp_path).finished
    assert_same_run(tmp_path, workdir)
    log = (tmp_path / "log.txt").read_text()
    assert "checkpoint 12" in log
    assert "going on from step 8" in log


def test_a_checkpoint_of_plain_dictionaries_goes_on(uninterrupted, tmp_path):
    """Runs of before there was a `State` stored its fields as keys."""
    names, tree = stored(uninterrupted[0], 8), {}
    for name, value in names.items():
        *parents, last = re.findall(r"\['(.*?)'\]", name)
        functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = value
    assert tree.keys() == {"state", "position"}
    assert tree["state"].keys() == {"trainable", "optimizer", "step"}  # no leaf is without a name
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(8, tree)
    assert fit(toy_config(), tmp_path).finished
    ours, theirs = stored(tmp_path), stored(uninterrupted[0])
    assert ours.keys() == theirs.keys() == names.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)


def test_a_killed_run_loses_only_what_came_after_the_last_save(tmp_path):
    config = toy_config(total_steps=30, run={"log_every": 1, "checkpoint_every": 5})
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    # The child sets itself up as conftest does, so that its numbers are the same to the bit.
    code = "import tests.conftest, sys; from tests.training import toy; toy.main(*sys.argv[1:])"
    process = python(code, killed, 30, 0.02, XLA_FLAGS=os.environ["XLA_FLAGS"])
    target = random.randint(6, 20)
    while process.poll() is None and not _logged(killed, target):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    reached = lines(killed)[-1]["step"]
    latest = Checkpoints(killed / "checkpoints").latest() or 0
    # Of the save that was being written nothing is left, the one before is complete.
    assert reached - 10 <= latest <= reached
    fit(config, whole)
    fit(config, killed)
    assert_same_run(killed, whole)


def _logged(workdir, step):
    file = workdir / "metrics.jsonl"
    return file.exists() and file.read_text().count("\n") >= step


# orbax's own: it leaves coroutines of the failed save behind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("capsys")  # captures in memory, not in a file
def test_a_full_disk_stops_the_run_in_one_line_and_loses_nothing(uninterrupted, tmp_path, caplog):
    config = toy_config()
    config.task.stop_at = 5
    fit(config, tmp_path)
    kept = Checkpoints(tmp_path / "checkpoints").steps()
    full = pytest.raises(TrainingError, match=r"cannot write '.*/8': File too large\. Make room")
    with full, full_disk(50_000):  # enough for the log, not for a checkpoint
        fit(toy_config(), tmp_path)
    assert [record for record in caplog.records if record.exc_info] == []
    assert Checkpoints(tmp_path / "checkpoints").steps() == kept == [4, 5]
    assert fit(toy_config(), tmp_path).finished
    assert_same_run(tmp_path, uninterrupted[0])


def compiled(workdir):
    """The cached programs of the step."""
    return sorted((workdir / "compiled").glob("jit_step-*-cache"))


@pytest.fixture(scope="module")
def seven_steps(tmp_path_factory):
    """A run of which seven steps are done, and a copy of it as it was then."""
    workdir, copy = (tmp_path_factory.mktemp(name) for name in ("stopped", "copy"))
    config = toy_config()
    config.task.stop_at = 7
    with caches_of_their_own():
        fit(config, workdir)
    (workdir / "log.txt").unlink()
    shutil.copytree(workdir, copy, dirs_exist_ok=True)
    return workdir, copy


@pytest.fixture
def stopped(seven_steps):
    """A run of which seven steps are done, and the programs compiled; where that was done."""
    workdir, copy = seven_steps
    shutil.rmtree(workdir)
    shutil.copytree(copy, workdir)
    with caches_of_their_own():
        yield workdir


def test_a_restart_compiles_nothing_and_learns_the_same(uninterrupted, stopped):
    fit(toy_config(), stopped)
    log = (stopped / "log.txt").read_text()
    assert "step taken from the compilation cache in" in log
    assert re.search(r"first step done after \d+\.\d s", log)
    assert_same_run(stopped, uninterrupted[0])


def test_a_cut_entry_of_the_compilation_cache_costs_a_compilation(uninterrupted, stopped):
    (entry,) = compiled(stopped)
    entry.write_bytes(entry.read_bytes()[:-100])
    fit(toy_config(), stopped)
    log = (stopped / "log.txt").read_text()
    assert "warning: Error reading persistent compilation cache entry for 'jit_step'" in log
    assert "step compiled in" in log
    assert_same_run(stopped, uninterrupted[0])
    assert compiled(stopped) == []  # the next start writes it anew


@pytest.fixture
def no_cache():
    """Jax is told of no cache, as it mostly is."""
    with caches_of_their_own():
        yield


@pytest.mark.usefixtures("no_cache")
def test_every_run_of_a_process_has_a_compilation_cache_of_its_own(tmp_path):
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for workdir in (tmp_path / "one", tmp_path / "two"):
        fit(toy_config(total_steps=1), workdir)
        assert [getattr(jax.config, name) for name in names] == before
        assert len(compiled(workdir)) == 1
    jax.jit(lambda x: x * 3)(jnp.ones(7)).block_until_ready()
    assert not list(tmp_path.glob("*/compiled/jit__lambda*"))


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path):
    config = toy_config(run={"log_every": 100, "checkpoint_every": 3})
    config.task.nan_at = 7
    with pytest.raises(TrainingError, match="is nan at step 7; the last good checkpoint is step 6"):
        fit(config, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [3, 6]
    for step in (3, 6):
        for name, value in stored(tmp_path, step).items():
            assert np.isfinite(value).all(), name


def test_a_loss_that_is_not_finite_right_after_a_resume_names_the_checkpoint(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    start = Checkpoints(tmp_path / "checkpoints").latest()
    config = toy_config()
    config.task.nan_at = start + 1
    place = re.escape(f"{tmp_path}/checkpoints/{start}")
    words = rf"right after going on from checkpoint {start}, which may be the cause: move '{place}'"
    with pytest.raises(TrainingError, match=words):
        fit(config, tmp_path)


def test_a_loss_that_explodes_names_step_and_metric(tmp_path):
    config = toy_config()
    config.optimizer.lr = 1e30
    with pytest.raises(TrainingError, match=r"\w+ is (nan|inf) at step \d+; .*optimizer\.lr"):
        fit(config, tmp_path)


@pytest.mark.parametrize(("devices", "fsdp"), [(8, 1), (8, 8), (8, 4)])
def test_many_devices_learn_what_one_does(uninterrupted, tmp_path, devices, fsdp):
    config = toy_config(parallel={"fsdp": fsdp})
    outcome = fit(config, tmp_path, devices)
    workdir, one = uninterrupted
    np.testing.assert_allclose(losses(tmp_path), losses(workdir), atol=SHARDED)
    kernels = [result.model.head.kernel[...] for result in (outcome, one)]
    np.testing.assert_allclose(*kernels, atol=SHARDED)


@pytest.mark.parametrize(("devices", "fsdp"), [(2, 2), (1, 1)])
def test_a_run_of_eight_devices_goes_on_with_fewer(uninterrupted, tmp_path, devices, fsdp):
    config = toy_config(parallel={"fsdp": 8})
    config.task.stop_at = 5
    assert fit(config, tmp_path, 8).steps == 5
    assert fit(toy_config(parallel={"fsdp": fsdp}), tmp_path, devices).finished
    np.testing.assert_allclose(losses(tmp_path), losses(uninterrupted[0]), atol=SHARDED)


def test_micro_batches_learn_what_one_batch_does(tmp_path):
    still = {"noise": 0.0}  # each micro-batch draws its own noise
    fit(toy_config(task=still), tmp_path / "one")
    fit(toy_config(task=still, parallel={"step": {"accumulate": 2}}), tmp_path / "two", devices=2)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=SHARDED)


def test_models_come_back_whole_in_float32(tmp_path):
    config = toy_config(parallel={"fsdp": 8, "frozen_dtype": "bfloat16"})
    config.parallel.step.update({"compute_dtype": "bfloat16", "ema": 0.5})
    outcome = fit(config, tmp_path, 8)
    for model in (outcome.initial, outcome.model):
        for leaf in jax.tree.leaves(nnx.state(model)):
            assert leaf.dtype == jnp.float32
            assert len(leaf.devices()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 12},
            "batch_size=12 does not divide over 8 devices .* next that does is 16",
        ),
        ({"run": {"log_every": 0}}, "log_every=0; it is a number of steps"),
        ({"parallel": {"fsdp": 3}}, "3 does not divide 8 devices"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_work(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        fit(toy_config(**changes), tmp_path, 8)
    assert not list(tmp_path.iterdir())


def test_the_second_signal_acts_as_usual():
    with default_signals(), StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested(3)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_outside_of_the_main_thread_signals_are_left_alone():
    before = signal.getsignal(signal.SIGTERM)
    found = []

    def enter():
        with StopSignal() as stop:
            found.append((signal.getsignal(signal.SIGTERM), stop.requested(0)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(before, False)]
