"""Retrieval: recall on classes that were never trained on, pictures, and FRPT's recipe."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapt.charts import RIGHT, WRONG
from vadapt.configs import frpt_cub
from vadapt.data import pipeline
from vadapt.metrics.retrieval import nearest_others, recall_at, recalls
from vadapt.run import run
from vadapt.tasks import image_labels, make_task
from vadapt.tasks.retrieval import _row
from vadapt.training.optimizers import OptimizerSettings
from vadapt.training.schedules import make_schedule


def scenes(argument):
    config = frpt_cub.get_config(f"scenes,{argument}")
    config.data.num_scenes, config.batch_size, config.eval.batch = 16, 4, 8
    for changes in config.test.values():
        changes.num_scenes = 24
    config.run.log_every = config.run.checkpoint_every = config.run.pictures_every = 1
    config.eval.every = 0
    return config


def test_it_trains_on_half_of_the_classes_and_reports_recall_on_the_others(tmp_path):
    config = scenes("frozen")
    config.total_steps = 1
    result = run(config, tmp_path, devices=jax.devices()[:1])
    scores = {f"{on}/recall@{k}/adapted" for on in ("clean", "other") for k in (1, 2, 4, 8)}
    assert {key for key in result if "/" in key} == scores
    assert list((tmp_path / "pictures").glob("nearest_*.png"))
    assert run(config, tmp_path, mode="evaluate", devices=jax.devices()[:1]) == result
    folder = tmp_path / "evaluation" / "clean"
    assert {"classes.csv", "worst.csv", "worst.png"} <= {path.name for path in folder.iterdir()}
    # All of it again from the model's own features.
    task = make_task(config)
    model = task.build()
    assert len(task.classes) == 10
    source = pipeline.make_source(pipeline.data_sets(config, "test")["clean"], image_labels.FIELDS)
    assert not {*source.classes} & {*task.classes}
    records = [source[i] for i in range(len(source))]
    seen = np.stack([task.prepare_image(record["image"]) for record in records])
    features = task.embed(model, seen)
    labels = np.stack([record["labels"] for record in records]).argmax(1)
    shares = recall_at(features, labels)  # one step moved the head alone, not these means
    assert {f"clean/recall@{k}/adapted": 100 * x for k, x in shares.items()}.items() <= {
        **result
    }.items()
    right = labels[nearest_others(features, 8)] == labels[:, None]
    lines = list(csv.DictReader((folder / "worst.csv").open()))
    alone = np.bincount(labels)[labels] == 1
    wanted = sorted(right.sum(1)[~alone].tolist())
    assert [float(line["right of 8"]) for line in lines if line["right of 8"]] == wanted
    rows = {row["class"]: row for row in csv.DictReader((folder / "classes.csv").open())}
    for number, name in enumerate(source.classes):
        there = labels == number
        assert int(rows[name]["images"]) == there.sum()
        if there.any():
            share = 100 * right[there, :2].any(1).mean()
            assert float(rows[name]["recall@2"]) == pytest.approx(share, rel=1e-5)


def test_the_head_of_retrieval_is_compared_by_what_it_pools():
    config = scenes("plain")
    task = make_task(config)
    model = task.build(pretrained=False)
    images = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    (last,) = model.features(task.pixels(jnp.asarray(images))).maps
    wanted = model.head.embed([last])
    np.testing.assert_allclose(task.embed(model, images), wanted, rtol=1e-5)


def test_right_and_wrong_ones_are_framed_so():
    gray = np.full((8, 8, 3), 90, np.uint8)
    query, right, wrong = _row(gray, [gray, gray], np.asarray([True, False]), 64)
    assert np.unique(query).tolist() == [90]
    for drawn, color in ((right, RIGHT), (wrong, WRONG)):
        assert {*map(tuple, drawn[0].tolist())} == {color}
        assert {*map(tuple, drawn[:, -1].tolist())} == {color}
        assert np.unique(drawn[3:-3, 3:-3]).tolist() == [90]


def test_neighbors_come_the_nearest_first_and_give_the_recall():
    features = np.asarray([[1, 0], [1, 0.1], [0, 1], [0.2, 1]], np.float32)
    nearest = nearest_others(features, 9, block=3)
    assert nearest.tolist() == [[1, 3, 2], [0, 3, 2], [3, 1, 0], [2, 1, 0]]
    assert recalls(np.asarray([0, 1, 1, 0]), nearest, (1, 2, 8)) == {1: 0.0, 2: 0.5, 8: 1.0}


def test_the_recipe_is_the_papers():
    config = frpt_cub.get_config()
    assert (config.batch_size, config.task.smoothing, config.data.augment) == (
        256,
        0.3,
        "resize_crop",
    )
    assert (config.optimizer.name, config.optimizer.momentum) == ("sgd", 0.0)
    assert config.optimizer.weight_decay == 5e-4
    assert round(config.data.image_size[0] / config.data.test_crop) == 256
    assert config.total_steps == pytest.approx(500 * 5864 / 256, abs=1)
    settings = OptimizerSettings.of(config.optimizer)
    rate = make_schedule(settings.schedule, settings.peak(256), config.total_steps)
    assert float(rate(0)) == pytest.approx(0.002)
    assert float(rate(1001)) == pytest.approx(0.02, rel=0.03)
    assert float(rate(config.total_steps)) == pytest.approx(2e-5, rel=1e-3)
    cars = frpt_cub.get_config("cars")
    assert (cars.task.smoothing, cars.data.num_labels) == (0.1, 98)
