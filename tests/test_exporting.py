"""A run as one file: its numbers are those of `predict`, and jax alone runs it."""

import dataclasses
import json
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

import vadapt
from tests.tasks.test_multilabel import scenes
from tests.test_trained import CLASSES, PALETTE, project, settings  # noqa: F401  a fixture
from vadapt.errors import ConfigError
from vadapt.run import run
from vadapt.tasks import make_task
from vadapt.tasks.classification import ClassificationTask
from vadapt.tasks.sliding import Inference
from vadapt.trained import LoadedRun

pytestmark = pytest.mark.usefixtures("two_blocks")


def pictures(number, size=(40, 56)):
    return np.random.default_rng(number).integers(0, 256, (number, *size, 3), np.uint8)


@pytest.fixture(scope="module")
def loaded(project):  # noqa: F811
    return vadapt.load_run(project[0] / "runs" / "mine")


@pytest.fixture(scope="module")
def file(loaded, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "segmenter.bin"
    return loaded.export(path, input_size=(40, 56), outputs=("labels", "probabilities"))


def assert_same(exported, loaded, images):
    found, wanted = exported(images), loaded.predict(images)
    assert found["labels"].dtype == np.int32
    for number, one in enumerate(wanted):
        np.testing.assert_array_equal(found["labels"][number], one.arrays["labels"])
    if "probabilities" in found:
        sure = np.stack([one.confidences["confidences"] for one in wanted])
        np.testing.assert_allclose(found["probabilities"].max(axis=-1), sure, atol=1e-5)


@pytest.mark.parametrize("number", [1, 3])
def test_classes_of_pixels_are_those_of_predict(number, loaded, file):
    exported = vadapt.load_exported(file)
    assert exported.image_size == (40, 56)
    assert exported.outputs == {"labels": ("b", 40, 56), "probabilities": ("b", 40, 56, 2)}
    assert_same(exported, loaded, pictures(number))


def test_windows_scales_and_mirroring_are_inside(loaded, tmp_path):
    inference = Inference((16, 24), (11, 16), windows=2, scales=(0.5, 1.0), flip=True)
    task = make_task(loaded.config)
    task.known, task.inference = loaded.task.known, inference
    windowed = dataclasses.replace(loaded, task=task)
    exported = vadapt.load_exported(windowed.export(tmp_path / "x.bin", input_size=(50, 41)))
    assert tuple(exported.outputs) == ("labels",)
    assert_same(exported, windowed, pictures(2, (50, 41)))


def test_it_says_what_it_is(file, loaded):
    exported = vadapt.load_exported(file)
    assert (exported.classes, exported.about["palette"]) == (CLASSES, PALETTE)
    assert (exported.name, exported.about["backbone"]) == ("segmentation", "vit_micro")
    with zipfile.ZipFile(file) as archive:
        assert json.loads(archive.read("about.json")) == exported.about
    assert "segmentation: uint8 [b, 40, 56, 3] -> labels [b, 40, 56]" in repr(exported)
    assert exported.about["std"] == list(loaded.config.data.std)


def test_jax_alone_runs_it(loaded, file, tmp_path):
    np.save(tmp_path / "images.npy", pictures(2))
    code = (
        "import sys, numpy as np, jax.export\n"
        f"file = jax.export.deserialize(open({str(file)!r}, 'rb').read())\n"
        "found = file.call(np.load('images.npy'))\n"
        "np.save('found.npy', found['labels'])\n"
        "print([name for name in ('vadapt', 'flax') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"
    wanted = [one.arrays["labels"] for one in loaded.predict(pictures(2))]
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), wanted)


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    """A run of labels, whose graphs are found by a kernel on TPUs, and cuts images' centers."""
    config = scenes("label_graph", total_steps=0)
    config.data.test_crop = 0.875
    config.task.layers = (0, 1)
    config.model.allow_unexpected = ("decoder/.*", r"(backbone/)?blocks/[2-5]/.*")
    workdir = tmp_path_factory.mktemp("labels")
    run(config, workdir, devices=jax.devices()[:1])
    return vadapt.load_run(workdir)


@pytest.mark.parametrize("task", [None, ClassificationTask])
def test_probabilities_of_labels_are_those_of_predict(task, recognizer, tmp_path):
    if task is not None:
        other = task(recognizer.config)
        other.known = recognizer.task.known
        recognizer = LoadedRun(other, recognizer.model, recognizer.name)
    path = recognizer.export(tmp_path / "labels.bin", input_size=(90, 70))
    exported, images = vadapt.load_exported(path), pictures(3, (90, 70))
    assert exported.classes == recognizer.classes
    found = np.asarray(exported(images)["probabilities"])
    for row, one in zip(found, recognizer.predict(images), strict=True):
        given = dict(zip(exported.classes, row, strict=True))
        for label, value in one.labels.items():
            assert given[label] == pytest.approx(value, abs=1e-5)


def test_the_size_is_by_default_that_of_training(loaded, tmp_path):
    path = loaded.export(tmp_path / "half.bin", dtype="bfloat16")
    assert vadapt.load_exported(path).image_size == (32, 32)


def test_what_cannot_be_exported_is_said(loaded, tmp_path):
    with pytest.raises(ConfigError, match="gives no 'scores'; allowed: 'labels', 'probabilities'"):
        loaded.export(tmp_path / "x.bin", outputs=("scores",))
    with pytest.raises(ConfigError, match="height, width"):
        loaded.export(tmp_path / "x.bin", input_size=(0, 4))
    from vadapt.configs import mae_scenes

    task = make_task(mae_scenes.get_config())
    with pytest.raises(ConfigError, match=r"no `respond`.*segmentation"):
        LoadedRun(task, loaded.model, "runs/mae").export(tmp_path / "x.bin")
    assert not list(tmp_path.iterdir())
