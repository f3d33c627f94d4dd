"""Whole runs of the PAD config, tiny: what they leave behind, and what they refuse."""

import csv
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import vadapt
from tests import compiled
from tests.training.toy import full_disk
from vadapt import run
from vadapt.backbones.vit import ViT
from vadapt.command_line import change
from vadapt.configs import linear_dinov2, pad_msip
from vadapt.data.pipeline import data_sets
from vadapt.errors import ConfigError, DataError, TrainingError
from vadapt.runtime.lock import locked
from vadapt.tasks import make_task
from vadapt.training import checkpoint
from vadapt.training.checkpoint import Checkpoints
from vadapt.training.loop import fit
from vadapt.weights.adapter_file import load_adapter, read_info

pytestmark = pytest.mark.usefixtures("two_blocks")
# Sums over the batch in another order, over six steps of float32.
SHARDED = 1e-5


def tiny(**changes):
    config = pad_msip.get_config("scenes")
    config.total_steps, config.batch_size = 6, 16
    config.data.num_scenes, config.data.image_size = 64, (32, 32)
    config.model.weights = ""
    config.data.view = "visible"  # three channels, as files have: one step for both
    config.method.hidden, config.task.decoder_depth = 32, 1
    config.optimizer.lr = 4e-3
    config.eval.probe_scenes, config.eval.num_pictures = 16, 2
    config.run.pictures_every = 4
    config.run.log_every, config.run.checkpoint_every = 1, 3
    for key, value in changes.items():
        config.update_from_flattened_dict({key.replace("__", "."): value})
    return config


def one():
    return jax.devices()[:1]


def losses(workdir):
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").open()]


def read(workdir, name="result.json"):
    return json.loads((workdir / name).read_text())


@pytest.fixture(scope="module")
def finished(two_blocks, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, run.run(tiny(), workdir, devices=one())


def test_a_finished_run_leaves_its_numbers(finished):
    workdir, result = finished
    assert read(workdir) == result
    assert all(type(value) in (int, float) for value in result.values())
    assert {"probe/frozen", "probe/adapted", "images_per_second"} <= result.keys()
    assert result["steps"] == 6
    assert result["trainable_parameters"] == 75_968
    assert result["images_per_second"] > 0
    assert len(losses(workdir)) == 6
    assert not (workdir / "compiled").exists()  # there is a cache already, see conftest.py
    assert read(workdir, "config.json")["batch_size"] == 16
    pictures = sorted(path.name for path in (workdir / "pictures").iterdir())
    assert pictures == ["reconstruction_000004.png", "reconstruction_000006.png"]
    assert Checkpoints(workdir / "checkpoints").steps() == [3, 6]


def test_the_adapter_file_makes_a_fresh_backbone_the_trained_one(finished, tmp_path, rng):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    task = make_task(tiny())
    trained = fit(task, tiny(), tmp_path, devices=one()).model.backbone
    fresh = task.build().backbone
    images = jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32)
    before, wanted = (compiled.run("features", model, images) for model in (fresh, trained))
    assert np.abs(wanted - before).max() > 0
    load_adapter(fresh, tmp_path / "adapter.safetensors")
    np.testing.assert_array_equal(compiled.run("features", fresh, images), wanted)


def test_a_run_that_does_not_predict_gives_features(finished, rng, tmp_path):
    image = rng.integers(0, 256, (40, 50, 3), np.uint8)
    loaded = vadapt.load_run(finished[0])
    assert isinstance(loaded.model, ViT)
    with pytest.raises(ConfigError, match="task 'mae', which has no `predict_image`"):
        loaded.predict(image)
    found = loaded.features(image)
    assert (found.shape, loaded.step) == ((4, 4, 96), None)
    wanted = compiled.run("features", loaded.model, loaded.preprocess(image))[0]
    np.testing.assert_allclose(found.reshape(16, 96), wanted[1:], atol=1e-4)
    workdir = shutil.copytree(finished[0], tmp_path / "unfinished")
    (workdir / "adapter.safetensors").unlink()
    begun = vadapt.load_run(workdir)
    assert begun.step == 6
    np.testing.assert_allclose(begun.features(image), found, atol=1e-4)


def test_an_adapter_trained_over_bfloat16_weights_fits_the_float32_ones(tmp_path):
    config = tiny(total_steps=0, eval__probe_scenes=0, parallel__frozen_dtype="bfloat16")
    run.run(config, tmp_path, devices=one())
    load_adapter(make_task(config).build().backbone, tmp_path / "adapter.safetensors")


def test_two_methods_are_applied_and_kept_in_their_order(tmp_path):
    config = tiny(total_steps=0, eval__probe_scenes=0)
    config.method = ConfigDict({"name": "cls_reinit", "then": {"name": "lora", "rank": 2}})
    run.run(config, tmp_path, devices=one())
    info = read_info(tmp_path / "adapter.safetensors")
    assert info.methods == ({"name": "cls_reinit"}, {"name": "lora", "rank": 2})
    model = vadapt.load_run(tmp_path).model
    assert [dict(method)["name"] for method in model.applied] == ["cls_reinit", "lora"]


def test_evaluation_scores_the_newest_checkpoint_and_writes_only_that(finished):
    workdir, result = finished
    before = {path: path.stat().st_mtime_ns for path in _outputs(workdir)}
    scores = run.run(tiny(), workdir, mode="evaluate", devices=one())
    assert scores == read(workdir, "evaluation.json") == result
    assert {path: path.stat().st_mtime_ns for path in _outputs(workdir)} == before
    probed = sorted(path.name for path in (workdir / "evaluation" / "probe").iterdir())
    assert probed == ["classes.csv", "confusion.csv", "confusion.png"]
    rows = list(csv.DictReader((workdir / "evaluation" / "probe" / "classes.csv").open()))
    iou = [float(row["IoU"]) for row in rows if row["IoU"]]
    assert np.mean(iou) / 100 == pytest.approx(result["probe/adapted"], rel=1e-5)


def test_a_finished_run_keeps_its_numbers_when_it_is_resumed(finished, tmp_path, monkeypatch):
    workdir, result = finished
    looked_through, find_damage = [], checkpoint.find_damage
    monkeypatch.setattr(
        checkpoint, "find_damage", lambda path: looked_through.append(path) or find_damage(path)
    )
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    config = tiny(run__log_every=2, eval__num_pictures=1)  # how to watch may change
    assert run.run(config, tmp_path, mode="resume", devices=one()) == result
    assert len(looked_through) == 1


@pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache")
@pytest.mark.usefixtures("capsys")  # captures in memory, not in a file
def test_a_full_disk_at_the_end_leaves_the_former_adapter(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    adapter = tmp_path / "adapter.safetensors"
    before = adapter.read_bytes()
    full = pytest.raises(TrainingError, match=r"cannot write .*adapter\.safetensors': File too")
    with full, full_disk(len(before) // 2):
        run.run(tiny(eval__probe_scenes=0), tmp_path, devices=one())
    assert adapter.read_bytes() == before
    assert read(tmp_path) == finished[1]


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"cannot write .*file/run/lock': Not a dir"):
        run.run(tiny(), tmp_path / "file" / "run")


@pytest.mark.parametrize("mode", ["resume", "evaluate"])
def test_without_a_checkpoint_there_is_nothing_to_go_on_from(tmp_path, mode):
    with pytest.raises(ConfigError, match=f"--mode={mode}: no complete checkpoint"):
        run.run(tiny(), tmp_path / "run", mode=mode)
    assert not (tmp_path / "run").exists()


def test_a_workdir_of_other_settings_is_refused_with_the_difference(finished):
    workdir, _ = finished
    before = read(workdir, "config.json")
    config = tiny(seed=7, optimizer__lr=0.5, run__log_every=50, parallel__fsdp=2)
    with pytest.raises(ConfigError) as error:
        run.run(config, workdir)
    lines = str(error.value).splitlines()
    assert lines[1:3] == [
        "  config.optimizer.lr: 0.00025 there, 0.03125 now",
        "  config.seed: 0 there, 7 now",
    ]
    assert len(lines) == 4
    assert read(workdir, "config.json") == before


def test_a_run_of_an_older_version_is_gone_on_with(tmp_path):
    config = tiny()
    config.method.loss_weight = 0.4
    run.claim(config, tmp_path, begun=False)
    held = read(tmp_path, "config.json")
    del held["parallel"]["step"]["scan"], held["method"]["loss_weight"]
    held["task"]["semantic_weight"] = 0.4
    (tmp_path / "config.json").write_text(json.dumps(held))
    run.claim(config, tmp_path, begun=True)
    (tmp_path / "config.json").write_text(json.dumps(held))
    config.method.loss_weight = 0.5
    with pytest.raises(ConfigError, match=r"method\.loss_weight: 0\.4 there, 0\.5 now"):
        run.claim(config, tmp_path, begun=True)


def test_other_settings_fork_as_the_refusal_says(finished, tmp_path):
    workdir, result = finished
    other = {"total_steps": 9, "optimizer__lr": 1e-3}
    with pytest.raises(ConfigError, match=f"another --workdir, with --from={workdir} to go on th"):
        run.run(tiny(**other), workdir, devices=one())
    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    forked = run.run(tiny(**other), tmp_path, start_from=workdir, devices=one())
    assert before == {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    assert (forked["steps"], len(losses(tmp_path))) == (9, 3)
    assert forked["probe/frozen"] == result["probe/frozen"]  # before any training, here and there
    assert read(tmp_path, "config.json")["optimizer"]["lr"] == 1e-3
    assert f"forked from {workdir.resolve()}, step 6" in (tmp_path / "log.txt").read_text()
    with pytest.raises(ConfigError, match="--mode=evaluate scores its --workdir"):
        run.run(tiny(**other), tmp_path, mode="evaluate", start_from=workdir, devices=one())


def test_a_workdir_in_which_nothing_was_trained_takes_new_settings(tmp_path):
    run.claim(tiny(seed=1), tmp_path, begun=False)
    run.claim(tiny(seed=2), tmp_path, begun=False)
    assert read(tmp_path, "config.json")["seed"] == 2


def test_a_finished_run_goes_on_for_longer_and_says_so(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    result = run.run(tiny(total_steps=8, eval__probe_scenes=0), tmp_path, devices=one())
    assert result["steps"] == 8
    log = (tmp_path / "log.txt").read_text()
    assert "the run was begun for 6 steps and now goes on to 8: from here on rates follow" in log
    assert "going on from step 6" in log
    assert read(tmp_path, "result_6.json") == finished[1]
    assert read(tmp_path, "config.json")["total_steps"] == 8
    with pytest.raises(ConfigError, match=r"config\.total_steps: 8 there, 6 now"):
        run.run(tiny(), tmp_path, devices=one())


def test_evaluation_writes_elsewhere_if_asked_to_and_nothing_in_the_workdir(finished, tmp_path):
    workdir, result = finished
    with locked(workdir):  # as by one that is training there
        before = {path: path.stat().st_mtime_ns for path in [workdir, *workdir.rglob("*")]}
        scores = run.run(tiny(), workdir, mode="evaluate", out=tmp_path / "out", devices=one())
        assert {path: path.stat().st_mtime_ns for path in [workdir, *workdir.rglob("*")]} == before
    assert scores == read(tmp_path / "out", "evaluation.json") == result
    assert (tmp_path / "out" / "pictures").is_dir()
    with pytest.raises(ConfigError, match=r"--out=.* goes with --mode=evaluate"):
        run.run(tiny(), workdir, out=tmp_path / "out")


def test_another_test_set_is_free_where_nothing_trained_by_it(tmp_path):
    config = linear_dinov2.get_config("scenes")
    run.claim(config, tmp_path, begun=True)
    other = config.copy_and_resolve_references()
    change(other, {"test.night.scene_seed": "7"}, [])
    assert data_sets(other, "test")["night"].scene_seed == 7
    run.claim(other, tmp_path, begun=True)
    run.claim(config, tmp_path, begun=True)
    for each in (config, other):
        each.eval.every, each.eval.best = 5, "mean/miou"
    run.claim(config, tmp_path / "best", begun=True)
    with pytest.raises(ConfigError, match=r"config\.test\.night\.scene_seed: 'absent' there"):
        run.claim(other, tmp_path / "best", begun=True)
    run.check_same(other, tmp_path / "best", free=(*run.FREE, "test."))


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_text('{"seed": 0')])
def test_lost_files_beside_checkpoints_cost_a_line(finished, tmp_path, caplog, damage):
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    for name in ("config.json", "result.json", "metrics.jsonl"):
        damage(tmp_path / name)
    run.run(tiny(eval__probe_scenes=0), tmp_path, devices=one())
    assert "config.json is missing or damaged: nothing tells whether" in caplog.text
    assert read(tmp_path, "config.json")["batch_size"] == 16
    assert read(tmp_path)["steps"] == 6


def test_eight_devices_learn_what_one_does(finished, tmp_path):
    result = run.run(tiny(parallel__fsdp=4), tmp_path)
    np.testing.assert_allclose(losses(tmp_path), losses(finished[0]), atol=SHARDED)
    assert result["probe/frozen"] == finished[1]["probe/frozen"]


def photos(folder, rng, broken):
    """24 images of several kinds, some of them cut short."""
    for number in range(24):
        image = Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8))
        path = folder / "sub" / f"photo_{number:02d}.{'png' if number % 2 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        image.convert("L" if number % 3 else "RGB").save(path)
        if number < broken:
            path.write_bytes(path.read_bytes()[:100])
    return {"data__source": "folder", "data__path": str(folder), "eval__probe_scenes": 0}


def test_a_folder_with_a_broken_file_trains_and_names_it(tmp_path, rng):
    workdir = tmp_path / "run"
    result = run.run(tiny(**photos(tmp_path, rng, broken=1)), workdir, devices=one())
    assert result["steps"] == 6
    assert "cannot read" in (log := (workdir / "log.txt").read_text())
    assert "photo_00.jpg" in log


def test_too_many_broken_files_stop_the_run(tmp_path, rng):
    config = tiny(**photos(tmp_path, rng, broken=4), data__max_corrupt=0.05)
    with pytest.raises(DataError, match=r"of 24 elements cannot be read.*config.data.max_corrupt"):
        run.run(config, tmp_path / "run", devices=one())


def test_baselines_train_everything_beside(tmp_path):
    config = tiny(baselines=True)
    result = run.run(config, tmp_path, devices=one())
    assert {"probe/frozen", "probe/adapted", "probe/full"} <= result.keys()
    assert (tmp_path / "full" / "metrics.jsonl").exists()


def test_a_frozen_run_scores_what_it_was_given(tmp_path):
    config = tiny(total_steps=0)
    result = run.run(config, tmp_path, devices=one())
    assert result["steps"] == 0
    assert result["probe/adapted"] == result["probe/frozen"]


def _outputs(workdir):
    names = ("result.json", "config.json", "metrics.jsonl", "adapter.safetensors")
    return [workdir / name for name in names]
