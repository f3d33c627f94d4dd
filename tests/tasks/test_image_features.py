"""Neighbors and a linear probe of whole images' features, beside a head's scores or alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vadapt.configs import vtab
from vadapt.data import pipeline
from vadapt.errors import ConfigError
from vadapt.metrics.linear_probe import fit_chosen_probe
from vadapt.run import run
from vadapt.tasks import image_features, image_labels, make_task
from vadapt.tasks.image_features import Side, nearest_votes


def scenes(argument="knn,probe"):
    """Few objects of the embedded scenes, on the frozen micro backbone."""
    config = vtab.get_config(f"scenes,{argument}")
    config.data.num_scenes, config.batch_size, config.eval.batch = 24, 8, 5
    for name in config.test:
        config.test[name].num_scenes = 7
    config.run.log_every = config.run.checkpoint_every = config.run.pictures_every = 1
    config.eval.every = 0
    return config


def own_features(task, model, data):
    """Means of the patches after the last norm, image by image, and the labels' numbers."""
    source = pipeline.make_source(data, image_labels.FIELDS)
    records = [source[i] for i in range(len(source))]
    pixels = task.pixels(jnp.asarray(np.stack([record["image"] for record in records])))
    patches = model.backbone.features(pixels, as_grid=True)
    return np.asarray(patches.mean((1, 2))), np.stack([r["labels"] for r in records]).argmax(1)


def test_one_command_without_training_scores_the_frozen_features_alone(tmp_path):
    config = scenes()
    result = run(config, tmp_path, devices=jax.devices()[:1])
    scores = {key for key in result if "/" in key}
    each = ("knn", "knn_top5", "probe", "probe_top5")
    assert scores == {f"{on}/{name}/adapted" for on in ("clean", "other") for name in each}
    assert result["steps"] == 0
    task = make_task(config)
    model = task.build()
    train, labels = own_features(task, model, config.data)
    (data, _) = pipeline.data_sets(config, "test").values()
    test, truth = own_features(task, model, data)
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    right = []
    for row, label in zip(units[1] @ units[0].T, truth, strict=True):
        votes = np.zeros(20)
        nearest = np.argsort(-row)[:20]
        np.add.at(votes, labels[nearest], np.exp(row[nearest] / 0.07))
        right.append((votes.argmax() == label, votes[label] > 0 and label in votes.argsort()[-5:]))
    top1, top5 = 100 * np.mean(right, axis=0)
    assert result["clean/knn/adapted"] == pytest.approx(top1)
    assert result["clean/knn_top5/adapted"] == pytest.approx(top5)
    probe, _ = fit_chosen_probe(train, labels, num_classes=20)
    share = 100 * (probe.logits(test).argmax(1) == truth).mean()
    assert result["clean/probe/adapted"] == pytest.approx(share)


def test_a_trained_run_is_scored_beside_its_head_also_afterwards(tmp_path):
    config = scenes("ssf")
    config.total_steps = 1
    before = run(config, tmp_path, devices=jax.devices()[:1])
    assert "clean/top1/adapted" in before
    assert "clean/knn/adapted" not in before
    config.eval.features = ("knn",)
    after = run(config, tmp_path, mode="evaluate", devices=jax.devices()[:1])
    assert {"clean/top1/adapted", "clean/knn/adapted", "other/knn_top5/adapted"} <= {*after}
    assert after["clean/top1/adapted"] == before["clean/top1/adapted"]
    assert (tmp_path / "evaluation" / "clean").is_dir()


def test_images_that_fill_batches_up_are_no_features():
    config = scenes()
    task = make_task(config)
    graph, state = nnx.split(task.build())
    calls = []

    def embed(graph, tree, images):
        calls.append(len(images))
        return images.mean((1, 2))

    model = nnx.merge(graph, state)
    side = image_features.side_of(embed, model, config, config.data, task.source, "")
    assert calls == [5] * 5  # of 24 images
    images = np.stack([task.source[i]["image"] for i in range(24)])
    np.testing.assert_allclose(side.features, images.mean((1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(side.targets, task.source.targets)
    np.testing.assert_array_equal(side.elements, np.arange(24))


def test_images_without_a_class_do_not_vote_and_classes_without_a_vote_have_none():
    targets = np.asarray([[1, 0, 0], [0, 0, 0], [0, 0, 1]], np.int8)
    train = Side(np.asarray([[1, 0], [1, 0.1], [0, 1]], np.float32), targets, np.arange(3))
    votes = nearest_votes(train)(np.asarray([[1, 0.1], [0.1, 1]], np.float32))
    assert votes.shape == (2, 3)
    assert np.isnan(votes[:, 1]).all()
    assert np.nanargmax(votes, axis=1).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("head", "made"),
    [("linear", "the mean of its places"), ("retrieval", "what its head pools")],
)
def test_what_is_compared_is_what_the_head_reads(head, made):
    config = scenes()
    config.head = {"name": head}
    model = make_task(config).build(pretrained=False)
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 64, 3)), jnp.float32)
    (last,) = model.features(pixels).maps
    vectors = model.embed(pixels)
    wanted = last.mean((1, 2)) if head == "linear" else model.head.embed([last])
    np.testing.assert_allclose(vectors, wanted, rtol=1e-5, atol=1e-6, err_msg=made)
    logits = model.head.linear(model.head.norm(vectors))
    np.testing.assert_allclose(model(pixels).logits, logits, rtol=1e-4, atol=1e-5)


def test_what_else_a_head_reads_is_compared():
    config = scenes("vpt")
    pixels = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 64, 3)), jnp.float32)
    for pool, name in (("prompt_pool", "prompts"), ("cls", "class_token")):
        config.head = {"name": "linear", "pool": pool}
        model = make_task(config).build(pretrained=False)
        output = model.features(pixels).outputs[name]
        wanted = output if pool == "cls" else output.mean(axis=1)
        np.testing.assert_allclose(model.embed(pixels), wanted, rtol=1e-5, atol=1e-6)


def test_another_name_is_refused_before_anything_is_trained():
    config = scenes()
    config.eval.features = ("knm",)
    with pytest.raises(ConfigError, match=r"config\.eval\.features: 'knm'; nearest: 'knn'"):
        make_task(config)
