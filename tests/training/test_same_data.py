"""A run goes on with the data that it was begun with, or is told that they may differ."""

import shutil

import jax
import numpy as np
import pytest

from tests.training.test_loop import lines, stored
from tests.training.toy import WIDTH, Disturbed, ToyTask, toy_config
from vadapt.data.stream import make_stream
from vadapt.errors import DataError
from vadapt.training import loop
from vadapt.training.checkpoint import Checkpoints
from vadapt.training.fork import find_origin


class Numbered(ToyTask):
    """The toy with a settable number of images."""

    def stream(self):
        length = self.config.task.get("images", 40)
        images = np.random.default_rng(0).integers(0, 256, (length, 8, WIDTH // 8, 1), np.uint8)
        source = [{"image": image, "bad": np.float32(0.0)} for image in images]
        stream = make_stream(source, [], batch_size=8, seed=0, num_threads=0)
        return Disturbed(stream, self.config.task)


def config_of(images=40, changed=False, stop_at=-1):
    config = toy_config(task={"images": images, "stop_at": stop_at})
    config.run.data_changed = changed
    return config


def fit(config, workdir, task=Numbered, **options):
    return loop.fit(task(config), config, workdir, devices=jax.devices()[:1], **options)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stopped")
    assert not fit(config_of(stop_at=6), workdir).finished
    return workdir


def said(workdir):
    return (workdir / "log.txt").read_text()


def test_other_data_are_refused(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    with pytest.raises(DataError) as error:
        fit(config_of(images=41), tmp_path)
    assert str(error.value) == (
        "the data changed since checkpoint 6 was written: 40 records there, 41 now. Bring back "
        "what was there, or go on with what is here: --config.run.data_changed=True"
    )
    assert Checkpoints(tmp_path / "checkpoints").steps() == [4, 6]


def test_other_data_that_are_allowed_are_those_of_the_run_from_there_on(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    fit(config_of(images=41, changed=True, stop_at=9), tmp_path)
    assert "the data changed since checkpoint 6 was written, and the run goes on" in said(tmp_path)
    assert fit(config_of(images=41), tmp_path).finished  # without the flag
    assert said(tmp_path).count("the data changed") == 1


def test_who_trains_nothing_may_have_other_data(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    assert fit(config_of(images=41), tmp_path, stop_at=6).finished
    fit(config_of(), tmp_path)
    assert fit(config_of(images=41), tmp_path).finished


@pytest.mark.parametrize("damage", [shutil.rmtree, lambda folder: (folder / "metadata").unlink()])
def test_a_checkpoint_that_says_nothing_of_its_data_goes_on(stopped, tmp_path, damage):
    """One of before, or a damaged one."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "checkpoints" / "6" / "about")
    assert fit(config_of(images=41), tmp_path).finished
    assert Checkpoints(tmp_path / "checkpoints").about(12)["data"]["data"]["records"] == 41


class Mute(Numbered):
    """One whose stream is no `Stream` of vadapt's."""

    def stream(self):
        stream = super().stream()
        stream.identity = dict
        return stream


def test_a_stream_that_says_nothing_of_its_data_trains(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    assert fit(config_of(), tmp_path, Mute).finished
    assert Checkpoints(tmp_path / "checkpoints").about(12) == {}


def test_a_fork_says_that_its_data_are_others_and_goes_on(stopped, tmp_path):
    config = config_of(images=41)
    origin = find_origin(stopped, tmp_path, loop.open_checkpoints(config, tmp_path), 12)
    fit(config, tmp_path, origin=origin)
    line = "the data changed since checkpoint 6 was written, and the run goes on: 40 records there"
    assert line in said(tmp_path)
    assert lines(tmp_path)[-1]["step"] == 12
    assert stored(tmp_path)["['position']"] == 12
    assert Checkpoints(tmp_path / "checkpoints").about(12)["data"]["data"]["records"] == 41


def test_of_equal_counts_the_digest_tells(stopped, tmp_path, monkeypatch):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    other = {"data": {"records": 40, "digest": "0123456789abcdef"}}
    monkeypatch.setattr("vadapt.data.stream.RecordStream.identity", lambda self: other)
    digest = Checkpoints(tmp_path / "checkpoints").about(6)["data"]["data"]["digest"]
    message = (
        "40 records as before, but other names, sizes or labels "
        rf"\(digest {digest} there, 0123456789abcdef now\)"
    )
    with pytest.raises(DataError, match=message):
        fit(config_of(), tmp_path)
