"""Forks: another run's checkpoint, other settings, a workdir of its own."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.training.test_loop import lines, stored
from tests.training.toy import WIDTH, ToyModel, ToyTask, toy_config
from vadapt.errors import ConfigError
from vadapt.partition import Queue, Statistic
from vadapt.training import loop
from vadapt.training.checkpoint import Checkpoints
from vadapt.training.fork import FORKED_FROM, find_origin


class Remembering(ToyTask):
    """The toy with a statistic that grows by one a step, and a queue of a settable length."""

    def build(self, *, pretrained=True):
        model = ToyModel(nnx.Rngs(0))
        model.steps = Statistic(jnp.zeros(()))
        model.queue = Queue(jnp.zeros((self.config.task.get("queue", 4), 1)))
        if width := self.config.task.get("width", 0):
            model.head = nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=nnx.Rngs(width))
            model.head.kernel = type(ToyModel(nnx.Rngs(0)).head.kernel)(model.head.kernel[...])
        return model

    def loss(self, model, batch, key):
        model.steps[...] = model.steps[...] + 1.0
        return super().loss(model, batch, key)

    def after_update(self, model, outputs):
        model.queue[...] = model.queue[...] + 2.0


def config_of(ema=0.9, **changes):
    config = toy_config(**changes)
    config.parallel.step.ema = ema
    return config


def fit(config, workdir, origin=None, **options):
    if origin is not None:
        checkpoints = loop.open_checkpoints(config, Path(workdir))
        origin = find_origin(origin, Path(workdir), checkpoints, config.total_steps)
    devices = jax.devices()[: options.pop("devices", 1)]
    return loop.fit(Remembering(config), config, workdir, devices=devices, origin=origin)


def content(folder):
    """Every file by its path: what it holds, and when it was last written."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def late(workdir, step):
    return [line for line in lines(workdir) if line["step"] > step]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Twelve steps, with checkpoints of 4, 8 and 12."""
    workdir = tmp_path_factory.mktemp("original")
    fit(config_of(), workdir)
    return workdir


def test_a_fork_of_the_same_settings_is_the_original_going_on(original, tmp_path):
    before = content(original)
    fit(config_of(), tmp_path, original / "checkpoints" / "4")
    assert late(tmp_path, 0) == late(original, 4) != []
    ours, theirs = stored(tmp_path), stored(original)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 8, 12]
    assert content(original) == before
    assert f"forked from {original}, step 4" in (tmp_path / "log.txt").read_text()


def test_a_fork_goes_on_without_the_original_and_the_flag(original, tmp_path):
    gone = shutil.copytree(original, tmp_path / "original")
    config = config_of(task={"stop_at": 6})
    assert not fit(config, tmp_path / "fork", gone / "checkpoints" / "4").finished
    shutil.rmtree(gone)
    # The same command, without a fuss; then without the flag.
    fit(config_of(task={"stop_at": 9}), tmp_path / "fork", gone)
    fit(config_of(), tmp_path / "fork")
    assert late(tmp_path / "fork", 0) == late(original, 4)
    about = Checkpoints(tmp_path / "fork" / "checkpoints").about(12)
    assert about[FORKED_FROM] == {"workdir": str(gone.resolve()), "step": 4}


def test_another_rate_acts_from_the_step_of_the_fork_on(original, tmp_path):
    config = config_of(total_steps=24)
    config.optimizer.lr = 0.05
    fit(config, tmp_path, original)
    rates = {line["step"]: line["learning_rate"] for line in lines(tmp_path)}
    fresh = config_of(total_steps=24)
    fresh.optimizer.lr = 0.05
    fit(fresh, tmp_path / "fresh")
    wanted = {line["step"]: line["learning_rate"] for line in lines(tmp_path / "fresh")}
    assert rates == {step: rate for step, rate in wanted.items() if step > 12}
    # The first step of the fork is from the weights of the original's last.
    assert lines(tmp_path)[0]["loss"] < lines(tmp_path / "fresh")[0]["loss"]
    held = stored(tmp_path)
    assert held["['state']['variables']['steps']"] == 24
    assert (held["['state']['variables']['queue']"] == 48).all()


def said(workdir):
    return (workdir / "log.txt").read_text()


def test_another_optimizer_starts_anew_where_the_schedule_stands(original, tmp_path):
    config = config_of(total_steps=16, ema=0.0)
    config.optimizer = {"name": "sgd", "lr": 0.1, "schedule": {"name": "cosine", "warmup": 0.5}}
    fit(config, tmp_path, original / "checkpoints" / "4")
    first = lines(tmp_path)[0]
    assert first["step"] == 6
    assert first["learning_rate"] == pytest.approx(0.1 * 5 / 8)  # of its step, the sixth
    assert "the optimizer is new" in said(tmp_path)
    assert "left behind, since these settings have no use for it: head/bias, head/" in said(
        tmp_path
    )
    held = stored(tmp_path)
    counts = [value for name, value in held.items() if name.endswith("['count']")]
    assert counts == [16]
    assert held["['state']['variables']['steps']"] == 16


def test_a_late_start_is_counted_from_the_first_step_of_all(original, tmp_path):
    config = config_of(total_steps=16)
    config.optimizer.rules = (("head/bias", {"start": 0.5}),)
    fit(config, tmp_path, original)
    assert "the optimizer is new" in said(tmp_path)
    held, before = stored(tmp_path), stored(original)
    bias = "['state']['trainable']['head']['bias']"
    assert np.abs(held[bias] - before[bias]).max() > 0  # from step 8 on, which is over


def test_what_does_not_fit_starts_anew_and_the_rest_is_taken(original, tmp_path):
    config = config_of(total_steps=14, task={"queue": 6})
    fit(config, tmp_path, original)
    assert "what the model holds as Queue is new" in said(tmp_path)
    assert "the optimizer is new" not in said(tmp_path)
    held = stored(tmp_path)
    assert (held["['state']['variables']['queue']"] == np.full((6, 1), 4.0)).all()
    assert held["['state']['variables']['steps']"] == 14


def test_a_moving_average_that_is_new_starts_from_what_is_trained(original, tmp_path):
    fit(config_of(ema=0.0), tmp_path / "without", original / "checkpoints" / "4")
    fit(config_of(total_steps=13), tmp_path / "with", tmp_path / "without")
    assert "the moving average starts from what is trained" in said(tmp_path / "with")
    before, after = stored(tmp_path / "without"), stored(tmp_path / "with")
    start, weight, ema = (
        held[f"['state']['{part}']['head']['kernel']"]
        for held, part in ((before, "trainable"), (after, "trainable"), (after, "ema"))
    )
    np.testing.assert_allclose(ema, 0.9 * start + 0.1 * weight, rtol=1e-5, atol=1e-7)


def test_other_trained_arrays_are_named_in_one_line(original, tmp_path):
    with pytest.raises(ConfigError, match="not what these settings train: head/bias there al") as e:
        fit(config_of(total_steps=14, task={"width": 1}), tmp_path, original)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "checkpoints").exists()


def test_a_fork_starts_before_a_damaged_checkpoint(original, tmp_path, caplog):
    origin = shutil.copytree(original, tmp_path / "original")
    for file in (origin / "checkpoints" / "12" / "tree" / "d").iterdir():
        file.write_bytes(b"\0" * file.stat().st_size)
    before = content(origin)
    fit(config_of(), tmp_path / "fork", origin)
    assert "checkpoint 12 in" in caplog.text
    assert late(tmp_path / "fork", 0) == late(original, 8)
    assert content(origin) == before


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"total_steps": 12}, "", r"step 12, and .*total_steps=12 .* --config.total_steps=24"),
        ({}, "checkpoints/5", r"no complete checkpoint 5; it has \[4, 8, 12\] under"),
        ({}, "nothing", "no complete checkpoint under"),
    ],
)
def test_a_fork_that_cannot_be_is_refused_in_one_line(original, tmp_path, changes, given, message):
    with pytest.raises(ConfigError, match=message) as error:
        fit(config_of(**changes), tmp_path / "fork", original / given)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "fork").exists()


def test_a_workdir_that_holds_another_run_is_no_place_for_a_fork(original, tmp_path):
    with pytest.raises(ConfigError, match="is the --workdir itself: leave --from out"):
        fit(config_of(total_steps=14), original, original)
    fork = tmp_path / "fork"
    fit(config_of(total_steps=5), fork, original / "checkpoints" / "4")
    for given in (original / "checkpoints" / "8", tmp_path):
        with pytest.raises(ConfigError, match=r"holds a run that began from .*, step 4; take an"):
            fit(config_of(total_steps=14), fork, given)
    with pytest.raises(ConfigError, match="holds a run that did not; take another"):
        fit(config_of(total_steps=14), original, fork)


def test_a_fork_goes_on_elsewhere(original, tmp_path):
    """On eight devices, with what trains split over them."""
    config = config_of(parallel={"fsdp": 8})
    fit(config, tmp_path, original / "checkpoints" / "4", devices=8)
    ours, theirs = ([line["loss"] for line in late(w, 4)] for w in (tmp_path, original))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
