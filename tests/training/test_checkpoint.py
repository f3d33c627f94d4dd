"""Checkpoints: what is saved comes back to the bit, on any mesh, whatever happened to the files."""

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vadapt.errors import ConfigError, WeightsError
from vadapt.training.checkpoint import Checkpoints


def make_mesh(count):
    return jax.make_mesh((count,), ("data",), (AxisType.Auto,), devices=jax.devices()[:count])


def make_tree(scale=1.0):
    return {"blocks": {0: {"scale": np.full(4, scale, np.float32)}}, "step": np.int64(scale)}


def abstract_of(tree, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def assert_equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def data_files(directory, step):
    """The files that hold the arrays of a checkpoint, the largest first."""
    files = [file for file in Path(directory, str(step), "tree").rglob("d/*") if file.is_file()]
    return sorted(files, key=lambda file: -file.stat().st_size)


@pytest.mark.parametrize("count", [4, 1])
def test_a_checkpoint_of_8_devices_loads_on_fewer(tmp_path, rng, count):
    values = rng.normal(size=(16, 4)).astype(np.float32)
    eight = NamedSharding(make_mesh(8), P("data"))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, {"w": jax.device_put(values, eight)})
    fewer = NamedSharding(make_mesh(count), P("data"))
    tree = Checkpoints(tmp_path).restore({"w": jax.ShapeDtypeStruct((16, 4), "float32")})
    assert isinstance(tree["w"], np.ndarray)
    abstract = {"w": jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=fewer)}
    restored = Checkpoints(tmp_path).restore(abstract)
    assert restored["w"].sharding == fewer
    np.testing.assert_array_equal(np.asarray(restored["w"]), values)


def test_an_optax_state_comes_back_to_the_bit(tmp_path, rng):
    params = {"blocks": {0: {"w": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)}}, "head": {}}
    params["head"]["w"] = jnp.asarray(rng.normal(size=(3,)), jnp.bfloat16)
    mask = {"blocks": {0: {"w": True}}, "head": {"w": False}}
    tx = optax.chain(optax.clip(1.0), optax.masked(optax.adamw(1e-3), mask))
    opt_state = tx.init(params)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
        _, opt_state = tx.update(jax.tree.map(jnp.ones_like, params), opt_state, params)
    tree = {"params": params, "opt": opt_state, "step": np.int64(1), "epoch": 2, "done": False}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree)
        restored = checkpoints.restore(tree)
    assert_equal(restored, tree)
    assert restored["epoch"] == 2
    assert type(restored["epoch"]) is int
    assert restored["done"] is False


def test_empty_arrays_and_a_lone_array_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        tree = {"none": np.zeros((0, 3), np.float32), "one": np.arange(3)}
        checkpoints.save(1, tree)
        assert_equal(checkpoints.restore(tree), tree)
        checkpoints.save(2, np.arange(5))
        assert_equal(checkpoints.restore(np.zeros(5, int)), np.arange(5))


def test_a_saved_array_may_be_donated_or_changed_at_once(tmp_path):
    step_fn = jax.jit(lambda x: x + 1, donate_argnums=0)
    x, position = jnp.zeros((512, 512)), np.zeros(3, np.int64)
    with Checkpoints(tmp_path, keep_last=4) as checkpoints:
        for step in range(4):
            checkpoints.save(step, {"x": x, "position": position})
            x = step_fn(x)
            position += 1
        for step in range(4):
            tree = checkpoints.restore(abstract_of({"x": x, "position": position}), step)
            assert np.all(tree["x"] == step)
            assert np.all(tree["position"] == step)


def test_the_last_ones_and_the_best_one_are_kept(tmp_path):
    losses = {1: 0.9, 2: 0.1, 3: 0.5, 4: float("nan"), 5: 0.4, 6: None}
    with Checkpoints(tmp_path, keep_last=2) as checkpoints:
        for step, loss in losses.items():
            metrics = None if loss is None else {"loss": loss, "other": 1.0}
            checkpoints.save(step, make_tree(step), metrics=metrics)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]
    again = Checkpoints(tmp_path, keep_last=2)
    assert (again.latest(), again.best()) == (6, 2)
    assert Checkpoints(tmp_path, best_mode="max").best() == 5
    again.save(7, make_tree(7), metrics={"loss": 0.05})
    again.close()
    assert again.steps() == [6, 7]
    assert again.best() == 7


def test_without_keep_best_only_the_last_ones_stay(tmp_path):
    with Checkpoints(tmp_path, keep_last=1, keep_best=False) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_tree(step), metrics={"accuracy": 0.5})
    assert checkpoints.steps() == [2]
    assert checkpoints.best() is None


def test_saving_a_step_twice_writes_it_once(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(5, make_tree(5), wait=True)
        before = (tmp_path / "5").stat().st_mtime_ns
        checkpoints.save(5, make_tree(5), wait=True)
    assert (tmp_path / "5").stat().st_mtime_ns == before


def test_a_step_that_another_run_left_is_replaced(tmp_path):
    with Checkpoints(tmp_path) as first:
        first.save(5, make_tree(5))
    with Checkpoints(tmp_path) as second:
        second.save(5, make_tree(6))
        assert second.restore(make_tree())["step"] == 6


def test_going_back_removes_the_abandoned_steps(tmp_path, caplog):
    with Checkpoints(tmp_path) as first:
        for step in (10, 20, 30):
            first.save(step, make_tree(step))
    with Checkpoints(tmp_path, keep_last=2) as second:
        second.restore(make_tree(), step=10)
        with caplog.at_level(logging.WARNING, "vadapt.training"):
            second.save(15, make_tree(15))
    assert second.steps() == [10, 15]
    assert "[20, 30] are removed" in caplog.text


def test_a_new_directory_has_nothing(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert (checkpoints.latest(), checkpoints.best(), checkpoints.steps()) == (None, None, [])
    with pytest.raises(WeightsError, match="no complete checkpoint in"):
        checkpoints.restore(make_tree())
    assert not (tmp_path / "none").exists()


def test_half_written_and_half_deleted_steps_are_not_picked_up(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_tree(1))
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    shutil.copytree(tmp_path / "1", tmp_path / "3")
    (tmp_path / "3" / "tree" / "_METADATA").unlink()
    (tmp_path / "notes_4").mkdir()
    again = Checkpoints(tmp_path)
    assert again.steps() == [1]
    with pytest.raises(WeightsError, match=r"no complete checkpoint 3 .* has \[1\]"):
        again.restore(make_tree(), step=3)
    with again:
        again.save(3, make_tree(3))
    assert again.steps() == [1, 3]
    assert not (tmp_path / "2.orbax-checkpoint-tmp").exists()


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def zero(file):
    file.write_bytes(b"\0" * file.stat().st_size)


@pytest.mark.parametrize("damage", [Path.unlink, truncate, zero])
@pytest.mark.parametrize("part", ["data", "manifest.ocdbt", "_sharding"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, damage, part, rng):
    def tree(step):
        return {"w": jnp.asarray(noise + step), "b": jnp.ones(2), "step": np.int64(step)}

    noise = rng.normal(size=(64, 64)).astype(np.float32)
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, tree(step))
    files = data_files(tmp_path, 2)[:1] if part == "data" else [tmp_path / "2" / "tree" / part]
    damage(files[0])
    with caplog.at_level(logging.WARNING, "vadapt.training"):
        restored = checkpoints.restore(tree(0))
    assert checkpoints.restored == 1
    assert_equal(restored, tree(1))
    assert "checkpoint 2" in caplog.text
    assert Checkpoints(tmp_path).latest() == 1
    with pytest.raises(WeightsError, match=r"restore one of \[1\] instead\. 2: "):
        checkpoints.restore(tree(0), step=2)


def test_an_error_names_all_checkpoints_when_none_can_be_read(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_tree(step))
    for step in (1, 2):
        truncate(tmp_path / str(step) / "tree" / "manifest.ocdbt")
    # None would make a run begin anew over them.
    assert Checkpoints(tmp_path).latest() == 2
    with pytest.raises(WeightsError, match=r"no readable checkpoint.* 2: .*; 1: "):
        checkpoints.restore(make_tree())


def test_a_tree_that_does_not_fit_is_reported_by_name(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": np.ones(2), "b": {"c": np.ones(3), "d": np.ones(1)}, "e": 1})
    with pytest.raises(WeightsError) as raised:
        checkpoints.restore(
            {"a": np.ones(2, np.float32), "b": {"c": np.ones((3, 2)), "x": np.ones(1)}, "e": 1}
        )
    message = str(raised.value)
    assert "checkpoint 1 does not fit the model" in message
    assert "1 missing in the checkpoint: b/x" in message
    assert "1 unexpected in the checkpoint: b/d" in message
    assert "2 of another shape or dtype: a: checkpoint float64[2], model float32[2]" in message
    assert "b/c: checkpoint float64[3], model float64[3,2]" in message


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"key": jax.random.key(0)}, "key is a typed PRNG key"),
        ({"a": {"name": "text"}}, "a/name is a str"),
        ({"a.b": 1, "a": {"b": 2}}, "two leaves are called 'a.b'"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(tmp_path, tree, message):
    with pytest.raises(WeightsError, match=message):
        Checkpoints(tmp_path).save(1, tree)


def test_settings_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="best_mode is 'least'"):
        Checkpoints(tmp_path, best_mode="least")
    with pytest.raises(ConfigError, match="keep_last is 0"):
        Checkpoints(tmp_path, keep_last=0)
    with pytest.raises(ConfigError, match=r"best_metric is 'los'.*nearest: 'loss'"):
        Checkpoints(tmp_path, best_metric="los").save(1, make_tree(), metrics={"loss": 1.0})


LOOP = """
import sys
import jax, jax.numpy as jnp, numpy as np
from vadapt.training.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep_last=2)
step_fn = jax.jit(lambda x: x + 1, donate_argnums=0)
x = jnp.zeros((64, 256))
for step in range(1, 100000):
    x = step_fn(x)
    checkpoints.save(step, {"x": x, "step": np.int64(step)}, metrics={"loss": 1.0 / step})
    print(step, flush=True)
"""


def test_kill_9_at_any_moment_leaves_a_good_checkpoint(tmp_path):
    command = [sys.executable, "-c", LOOP, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        first = [process.stdout.readline() for _ in range(8)]
        time.sleep(random.random())
        os.kill(process.pid, signal.SIGKILL)
        begun = int((first + process.stdout.readlines())[-1])
    checkpoints = Checkpoints(tmp_path)
    latest = checkpoints.latest()
    # The save of step s first waits for that of s - 1.
    assert latest >= begun - 1
    tree = checkpoints.restore({"x": np.zeros((64, 256), np.float32), "step": np.int64(0)})
    assert checkpoints.restored == latest == tree["step"]
    assert np.all(tree["x"] == latest)
    with checkpoints:
        checkpoints.save(latest + 1, tree)
    assert checkpoints.latest() == latest + 1


def flip_a_bit(file, rng):
    """One bit of a file is the other way round, somewhere."""
    data = bytearray(file.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)


def files_of(directory, step):
    """All files of a checkpoint, and apart from them orbax's notes, of which nothing is read."""
    found = sorted(path for path in Path(directory, str(step)).rglob("*") if path.is_file())
    notes = [x for x in found if x.name in ("_CHECKPOINT_METADATA", "commit_success.txt")]
    return [path for path in found if path not in notes], notes


def test_any_flipped_bit_of_a_checkpoint_is_noticed(tmp_path, caplog, rng):
    tree = {"w": jnp.asarray(rng.normal(size=(16, 16)), jnp.float32), "step": np.int64(1)}
    with Checkpoints(tmp_path) as checkpoints:
        for step, loss in ((1, 0.5), (2, 0.25)):
            checkpoints.save(step, tree, metrics={"loss": loss})
    files, notes = files_of(tmp_path, 2)
    assert len(files) >= 7
    # Once in each file, then anywhere.
    for file in [*files, *rng.choice(np.array(files, object), 60)]:
        before = file.read_bytes()
        flip_a_bit(file, rng)
        caplog.clear()
        again = Checkpoints(tmp_path)
        if file.parent.name == "scores":
            assert (again.latest(), again.best()) == (2, 1), file
            assert "the scores of checkpoint 2" in caplog.text
        else:
            assert again.latest() == 1, file
            assert "checkpoint 2" in caplog.text
        file.write_bytes(before)
    for file in notes:
        flip_a_bit(file, rng)
    again = Checkpoints(tmp_path)
    assert (again.latest(), again.best()) == (2, 2)
    assert_equal(again.restore(tree), tree)
    with again:
        again.save(3, tree, metrics={"loss": 0.125})
    assert again.best() == 3


def test_digests_of_a_checkpoint_that_lies_on_eight_devices(tmp_path, rng):
    values = rng.normal(size=(16, 4)).astype(np.float32)
    eight = NamedSharding(make_mesh(8), P("data"))
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"w": jax.device_put(values, eight)})
    flip_a_bit(data_files(tmp_path, 2)[0], rng)
    assert Checkpoints(tmp_path).latest() == 1


def test_a_checkpoint_without_digests_is_read(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_tree(1), metrics={"loss": 0.5})
    for path in files_of(tmp_path, 1)[0]:
        if path.name == "digests.json":
            path.unlink()
    again = Checkpoints(tmp_path)
    assert (again.latest(), again.best()) == (1, 1)
    assert_equal(again.restore(make_tree()), make_tree(1))
