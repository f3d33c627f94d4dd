"""Predicting: every task that says what it sees in an image does so, the others are named."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.tasks.test_multilabel import scenes
from vadapt import predict
from vadapt.configs import pad_msip
from vadapt.data import pipeline
from vadapt.data.multilabel import SceneLabels
from vadapt.run import run
from vadapt.tasks import TASKS, make_task
from vadapt.training.task import Prediction, Predicts
from vadapt.weights.files import write_arrays

NUMBER = 3


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of another size than that of training, one of them deeper and one that is broken."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep").mkdir()
    for i, name in enumerate(("a.png", "b.jpg", "deep/c.png")):
        image = Image.fromarray(SceneLabels(NUMBER, seed=5)[i]["image"])
        image.resize((96, 80)).save(folder / name)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def flags(run, images, out):
    return [f"--run={run}", f"--images={images}", f"--out={out}"]


def command(workdir, images, out):
    return predict.main([f"--workdir={workdir}", f"--images={images}", f"--out={out}"])


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that recognises labels, of no step: its head is as good as it begins."""
    config = scenes(total_steps=0)
    config.eval.threshold = 0.4999
    workdir = tmp_path_factory.mktemp("run")
    run(config, workdir)
    return config, workdir


def test_labels_of_images_are_a_table_and_pictures(finished, photos, tmp_path, capsys):
    config, workdir = finished
    assert command(workdir, photos, tmp_path) == 0
    assert f"{NUMBER} images" in capsys.readouterr().out
    rows = table(tmp_path / "labels.csv")
    by_image = {}
    for row in rows:
        by_image.setdefault(row["image"], []).append((row["label"], float(row["probability"])))
    assert list(by_image) == ["a.png", "b.jpg", "deep/c.png"]
    task = make_task(config)
    for name, found in by_image.items():
        values = [value for _, value in found]
        assert values == sorted(values, reverse=True)
        assert len({label for label, _ in found} & set(task.classes)) == len(found) >= 5
        picture = tmp_path / "pictures" / name
        assert picture.with_suffix(".jpg").exists()
    image = np.asarray(Image.open(photos / "a.png").resize((64, 64), Image.Resampling.BILINEAR))
    scores = task.probabilities(task.predict(task.build(), image[None]))[0]
    label, value = by_image["a.png"][0]
    assert scores[task.classes.index(label)] == pytest.approx(value, abs=1e-3)
    chosen = sum(scores >= config.eval.threshold)
    assert abs(len(by_image["a.png"]) - max(5, chosen)) <= 1  # another way to resize


def test_the_data_of_a_run_are_not_asked_for(finished, photos, tmp_path, monkeypatch):
    workdir, asked = shutil.copytree(finished[1], tmp_path / "moved"), []
    monkeypatch.setattr(pipeline, "make_source", lambda *given, **more: asked.append(given))
    assert command(workdir, photos, tmp_path / "a") == 0
    (workdir / "adapter.safetensors").rename(tmp_path / "alone.safetensors")
    assert command(tmp_path / "alone.safetensors", photos, tmp_path / "b") == 0
    assert asked == []
    tables = [(tmp_path / out / "labels.csv").read_text() for out in ("a", "b")]
    assert tables[0] == tables[1]


def test_what_was_not_read_is_named(finished, photos, tmp_path, capsys):
    folder = shutil.copytree(photos, tmp_path / "photos")
    (folder / "notes.txt").write_text("no image")
    out = folder / "out"
    for _ in range(2):  # what it wrote itself is no image to predict
        assert command(finished[1], folder, out) == 0
    said = capsys.readouterr().out
    assert said.count("3 images\n1 could not be read: broken.png\n1 file passed over") == 2
    assert "tiff: notes.txt\n" in said
    assert predict.main([*flags(finished[1], folder, out), "--format=json,csv"]) == 0
    found = json.loads((out / "predictions.json").read_text())
    assert found["not_read"] == [{"image": "broken.png", "reason": "no image of a known format"}]
    assert found["passed_over"] == ["notes.txt"]
    assert [one["image"] for one in found["images"]] == ["a.png", "b.jpg", "deep/c.png"]
    assert found["images"][0]["files"] == {}
    rows = table(out / "labels.csv")
    best = found["images"][0]["found"][0]
    assert best["label"] == rows[0]["label"]
    assert best["probability"] == pytest.approx(float(rows[0]["probability"]))
    assert found["classes"] == list(make_task(finished[0]).classes)


def test_images_of_one_name_are_kept_apart(finished, photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, source in (("a.png", "a.png"), ("A.jpg", "b.jpg"), ("b.png", "a.png")):
        shutil.copy(photos / source, folder / name)
    assert command(finished[1], folder, tmp_path / "out") == 0
    written = sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir())
    assert written == ["A.jpg.jpg", "a.png.jpg", "b.jpg"]
    assert {row["image"] for row in table(tmp_path / "out" / "labels.csv")} == {
        "a.png", "A.jpg", "b.png"
    }  # fmt: skip


def test_a_name_that_is_another_with_its_suffix_is_kept_apart():
    names = ["x.png", "x.jpg", "x.png.tif", "deep/x.png"]
    found = predict.distinct_stems(names)
    assert found["deep/x.png"] == "deep/x"
    assert len({*found.values()}) == 4


def test_one_file_is_enough_and_none_is_an_error(finished, photos, tmp_path, capsys):
    assert command(finished[1], photos / "deep" / "c.png", tmp_path / "out") == 0
    assert (tmp_path / "out" / "pictures" / "c.jpg").exists()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.webp").touch()
    for images, words in (
        (photos / "broken.png", "none of 1 images can be read; the first: broken.png (no image"),
        (tmp_path / "empty", "there are 1 other files: a.webp"),
        (tmp_path / "none", "no file or folder"),
    ):
        assert command(finished[1], images, tmp_path / "out") == 1
        assert words in capsys.readouterr().err
    arguments = [*flags(finished[1], photos, tmp_path), "--format=svg"]
    assert predict.main(arguments) == 1
    assert "unknown format 'svg'; allowed: png, csv, json" in capsys.readouterr().err


def test_of_one_label_an_image_the_probabilities_are_shares(finished, photos):
    config = finished[0].copy_and_resolve_references()
    config.task.name = "classification"
    task = make_task(config)
    logits = np.asarray([[0.0, 1e4, 1e4], [1.0, 2.0, 3.0]], np.float32)
    np.testing.assert_allclose(task.probabilities(logits).sum(-1), 1)
    np.testing.assert_allclose(task.probabilities(logits)[0], [0, 0.5, 0.5])
    found = task.predict_image(task.build(), np.asarray(Image.open(photos / "a.png")))
    assert isinstance(found, Prediction)
    assert len(found.labels) == 5
    assert sum(found.labels.values()) < 1


def test_a_task_that_cannot_predict_is_named_with_those_that_can(photos, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(pad_msip.get_config("scenes").to_dict()))
    write_arrays(tmp_path / "adapter.safetensors", {}, {"vadapt": "0.1", "base": "0"})
    assert command(tmp_path, photos, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "a run of the task 'mae', which has no `predict_image`" in said
    assert "classification, detection, multilabel, retrieval, segmentation" in said
    assert not (tmp_path / "out").exists()


def test_predicting_needs_a_finished_run(photos, tmp_path, capsys):
    assert command(tmp_path, photos, tmp_path) == 1
    assert "holds no run to use" in capsys.readouterr().err


@pytest.mark.parametrize("name", TASKS)
def test_the_command_names_no_task(name):
    with open(predict.__file__, encoding="utf-8") as file:
        assert f'"{name}"' not in file.read()
    able = name in ("classification", "detection", "multilabel", "retrieval", "segmentation")
    assert issubclass(TASKS[name], Predicts) == able
