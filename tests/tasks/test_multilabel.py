"""Labels of images: a table of a user's own trained on, the step, exact testing, mixed images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from vadapt.charts import RIGHT, WRONG
from vadapt.configs import gkgnet_coco, gkgnet_voc, parts, vig_imagenet
from vadapt.data import pipeline
from vadapt.data.multilabel import SceneLabels
from vadapt.drawing import INK, QUIET
from vadapt.errors import ConfigError
from vadapt.metrics.multilabel import average_precision
from vadapt.partition import count, flatten, split
from vadapt.run import run
from vadapt.tasks import image_labels, make_task
from vadapt.tasks.label_reports import class_confusion, class_losses, label_losses, text_lines
from vadapt.tasks.mixing import mix
from vadapt.weights.adapter_file import save_model


def scenes(head="linear", **changes):
    """A head on the frozen micro backbone, and scenes."""
    config = gkgnet_coco.get_config(f"scenes,frozen{',linear' * (head == 'linear')}")
    config.batch_size, config.eval.batch, config.data.num_scenes = 8, 4, 12
    for name in config.test:
        config.test[name].num_scenes = 6
    config.update(changes)
    return config


def write_table(root, splits=(("train", 0, 64), ("val", 7, 6))):
    """Scenes as a user's folder, with one table of names."""
    lines = ["file,labels"]
    for name, seed, number in splits:
        source = SceneLabels(number, seed=seed)
        for i in range(number):
            record, file = source[i], f"{name}/{i:02}.png"
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(record["image"]).save(root / file)
            labels = [source.classes[k] for k in np.flatnonzero(record["labels"])]
            lines.append(f"{file},{';'.join(labels)}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")


def loss_of(task, model, batch):
    """The loss, its terms, and the model with the statistics that it then has."""
    graph, state = nnx.split(model)

    def loss(state):
        learning = nnx.merge(graph, state)
        value, terms = task.loss(learning, batch, jax.random.key(0))
        return value, terms, nnx.state(learning)

    value, terms, state = jax.jit(loss)(state)
    return value, terms, nnx.merge(graph, state)


def test_a_users_table_is_trained_on(tmp_path):
    write_table(tmp_path / "data")
    config = scenes()
    config.total_steps, config.batch_size = 30, 32
    data = config.data
    data.source, data.layout, data.path, data.split = "labels", "table", str(tmp_path / "data"), ""
    data.num_labels, data.split = 0, "train"
    config.test = ConfigDict({"val": {"split": "val"}, "train": {"split": "train"}})
    parts.look_up_every(config, 15)
    result = run(config, tmp_path / "run")
    chance = 100 * SceneLabels(64).targets.mean()
    assert result["train/mAP/adapted"] > chance + 10
    assert 0 < result["val/CF1/adapted"] < 100
    assert (tmp_path / "run" / "pictures" / "labels_000030.png").exists()


@pytest.mark.parametrize("head", ["linear", "label_graph"])
def test_only_the_head_learns_and_every_term_is_reported(head):
    task = make_task(scenes(head))
    model = task.build()
    parts = split(model)
    assert {path.split("/")[0] for path in flatten(parts.trainable)} == {"head"}
    batch = {name: jnp.asarray(value) for name, value in next(task.stream()).items()}
    shapes = {name: (value.shape, value.dtype) for name, value in batch.items()}
    assert shapes == {k: (v.shape, v.dtype) for k, v in task.batch_shapes().items()}
    loss, terms, _ = loss_of(task, model, batch)
    assert set(terms) == {"loss_bce", "loss_asl"}
    np.testing.assert_allclose(loss, terms["loss_bce"] + terms["loss_asl"], rtol=1e-6)
    np.testing.assert_allclose(terms["loss_bce"], 20 * np.log(2), rtol=0.2)


def test_weights_with_a_head_bring_it(tmp_path):
    task = make_task(scenes(seed=1))
    model, image = task.build(), np.zeros((1, 64, 64, 3), np.uint8)
    save_model(tmp_path / "model.safetensors", model, "float32")
    again = scenes(seed=2)
    again.model.weights, again.task.load_head = str(tmp_path / "model.safetensors"), True
    loaded = make_task(again)
    np.testing.assert_array_equal(loaded.predict(loaded.build(), image), task.predict(model, image))


def test_testing_counts_every_image_once_whatever_fills_batches_up():
    config = scenes()
    task = make_task(config)
    model = task.build()
    data = pipeline.data_sets(config, "test")["other"]
    source = pipeline.make_source(data, image_labels.FIELDS)
    feed = image_labels.evaluation_feed(data)
    batches = list(pipeline.evaluation_batches(data, feed, source, 4))
    assert [int(batch["valid"].sum()) for batch in batches] == [4, 2]
    logits, targets, areas = task.answers(model, data).rows()
    alone = np.concatenate([task.predict(model, source[i]["image"][None]) for i in range(6)])
    np.testing.assert_allclose(logits, alone, atol=1e-4)
    np.testing.assert_array_equal(targets, source.targets)
    np.testing.assert_array_equal(areas[3], source[3]["areas"])
    expected = 100 * average_precision(logits, source.targets).mean()
    scores = task.evaluate(model)
    assert scores["other/mAP"] == pytest.approx(expected)
    assert {"clean/CF1", "clean/OF1_top3", "other/mAP_s", "other/CF1_top3_thr"} <= set(scores)


def test_a_report_has_the_scores_of_testing_and_every_image_by_itself():
    task = make_task(scenes())
    model = task.build()
    scores, reports = task.report(model)
    assert scores == task.evaluate(model)
    report, images = reports["other"], reports["other"].images
    assert report.confusion is None
    ap = {row["class"]: row["AP"] for row in report.rows if row["images"]}
    assert ap == {name: scores[f"other/AP/{name}"] for name in ap}
    precision = np.mean([row["precision"] for row in report.rows])
    assert precision == pytest.approx(scores["other/CP"])
    cells = ("true_positives", "false_positives", "false_negatives", "true_negatives")
    assert {sum(row[cell] for cell in cells) for row in report.rows} == {6}
    source = SceneLabels(6, view="visible", seed=0)
    logits, targets, _ = task.answers(
        model, pipeline.data_sets(task.config, "test")["other"]
    ).rows()
    assert targets.shape == (6, len(source.classes))
    losses = label_losses(logits, targets)
    assert images.elements.tolist() == np.argsort(-losses, kind="stable").tolist()
    np.testing.assert_array_equal(images.scores, np.sort(losses)[::-1])
    few, more = (images.draw(images.worst(number)) for number in (2, 5))
    assert more.shape[0] - few.shape[0] == 3 * (192 + 8)


def test_losses_of_images_are_exact_and_doubt_has_none():
    logits = np.array([[0.0, 0.0], [-800.0, 800.0], [3.0, 3.0], [np.nan, 0.0]], np.float32)
    targets = np.array([[1, -1], [1, 0], [-1, -1], [1, 1]], np.int8)
    found = label_losses(logits, targets)
    np.testing.assert_allclose(found, [np.log(2), 800, np.nan, np.inf], rtol=1e-12)
    one = np.array([[1, 0], [0, 1], [0, 0], [1, 0]], np.int8)
    found = class_losses(logits, one)
    np.testing.assert_allclose(found, [np.log(2), 0, np.nan, np.inf], atol=1e-12)
    assert class_confusion(logits, one).tolist() == [[1, 0, 1], [0, 1, 0]]


def test_what_is_said_of_an_image_tells_right_from_wrong():
    classes, probabilities = ("dog", "cat", "cow", "owl"), np.array([0.9, 0.2, 0.6, 0.05])
    targets = np.array([1, 1, 0, -1])
    truth, found = text_lines(classes, probabilities, targets, 0.5)
    assert truth == [("cat  20%", WRONG), ("dog  90%", RIGHT), ("owl  in doubt", QUIET)]
    assert found == [("dog  90%", RIGHT), ("cow  60%", WRONG), ("cat  20%", QUIET)]
    _, best = text_lines(classes, probabilities, targets, 2.0)  # which only the best one reaches
    assert best == [("dog  90%", RIGHT), ("cow  60%", QUIET), ("cat  20%", QUIET)]
    broken, none = text_lines(classes, np.full(4, np.nan), 0 * targets, 2.0)
    assert broken == [("none", INK)]
    assert [color for _, color in none] == [QUIET] * 3


def test_norms_of_the_backbone_move_only_when_they_train():
    for norms in (False, True):
        config = gkgnet_coco.get_config("scenes")
        config.batch_size, config.data.num_scenes = 4, 8
        config.model.options.update(widths=(8,), depths=(1,), reductions=(2,))
        config.head.drop_path_rates, config.task.layers = (0.0,), (0,)
        config.task.train_norms = norms
        task = make_task(config)
        batch = {name: jnp.asarray(value) for name, value in next(task.stream()).items()}

        model = task.build()
        before = model.backbone.stem[0].norm.mean[...]
        _, _, after = loss_of(task, model, batch)
        assert bool(jnp.any(after.backbone.stem[0].norm.mean[...] != before)) == norms


def test_pictures_show_what_labels_took_from():
    task = make_task(scenes("label_graph"))
    model = task.build()
    batch = next(task.stream())
    sheet = task.pictures(model, batch)["labels"]
    assert sheet.dtype == np.uint8
    plain = make_task(scenes())
    without = plain.pictures(plain.build(), batch)["labels"]
    assert sheet.shape[1] > without.shape[1] + 300  # three more columns


def test_mixed_images_and_labels_go_together():
    ones = jnp.ones((2, 16, 16, 3))
    images = jnp.concatenate([ones, 0 * ones])
    targets = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    kinds, run_mix = set(), jax.jit(lambda key: mix(key, images, targets))
    for seed in range(24):
        mixed, labels = map(np.asarray, run_mix(jax.random.key(seed)))
        np.testing.assert_allclose(labels.sum(1), 1, rtol=1e-6)
        share = mixed.mean((1, 2, 3))
        np.testing.assert_allclose(share, labels[:, 0], atol=1e-5)
        levels = np.unique(mixed[0].round(6))
        kinds.add("box" if set(levels.tolist()) <= {0.0, 1.0} else "blend")
    assert kinds == {"box", "blend"}
    same, labels = mix(jax.random.key(0), images, targets, mixup=0.0, cutmix=0.0)
    assert same is images
    assert labels is targets
    blended, _ = jax.jit(lambda key: mix(key, images, targets, cutmix=0.0))(jax.random.key(1))
    assert len(np.unique(np.asarray(blended[0]).round(6))) == 1


def test_the_one_label_of_an_image_is_learnt_by_softmax():
    config = vig_imagenet.get_config("scenes")
    config.batch_size, config.data.num_scenes = 4, 6
    config.model.backbone, config.model.weights = "vit_micro", "vit_micro_scenes"
    config.model.options = ConfigDict({"positions": "sincos"})
    config.model.allow_unexpected = ("decoder/.*",)
    config.task.layers, config.task.mixup, config.task.cutmix = (5,), 0.8, 1.0
    config.test = ConfigDict({"clean": {"num_scenes": 5}})
    task = make_task(config)
    model = task.build()
    batch = {name: jnp.asarray(value) for name, value in next(task.stream()).items()}
    loss, terms, _ = loss_of(task, model, batch)
    assert set(terms) == {"loss_ce"}
    np.testing.assert_allclose(loss, np.log(20), rtol=0.5)
    scores = task.evaluate(model)
    assert set(scores) == {"clean/top1", "clean/top5"}
    assert 0 <= scores["clean/top1"] <= scores["clean/top5"] <= 100
    again, reports = task.report(model)
    assert again == scores
    counts = reports["clean"].confusion
    assert (counts.shape, counts.sum()) == ((20, 21), 5)
    assert 100 * np.trace(counts) / 5 == pytest.approx(scores["clean/top1"])
    found = sum(row["accuracy"] * row["images"] for row in reports["clean"].rows if row["images"])
    assert found / 5 == pytest.approx(scores["clean/top1"])
    assert reports["clean"].images.draw([0, 1]).shape[1] > 3 * 192


def test_published_recipes_are_the_papers():
    config = gkgnet_coco.get_config()
    optimizer, epoch = config.optimizer, 82_783 / 128
    assert optimizer.lr == 1e-4
    drops = [share * config.total_steps / epoch for share in optimizer.schedule.drops]
    np.testing.assert_allclose(drops, [10, 50], rtol=1e-3)
    np.testing.assert_allclose(config.head.drop_path_rates, np.linspace(0, 0.1, 12)[[0, 2, 4, 10]])
    assert gkgnet_coco.get_config("448,tiny").data.image_size == (448, 448)
    assert gkgnet_coco.get_config("frozen").data.image_size == (574, 574)
    assert gkgnet_voc.get_config().data.image_size == (448, 448)
    vig = vig_imagenet.get_config("s")
    assert vig.optimizer.lr == 2e-3
    assert vig.model.options.groups == 2
    for module in (gkgnet_coco, vig_imagenet):
        with pytest.raises(ValueError, match="unknown argument"):
            module.get_config("smal")


def test_data_that_cannot_be_are_said(tmp_path):
    config = scenes()
    config.data.source = "scene"
    with pytest.raises(ConfigError, match="nearest: 'scenes'"):
        make_task(config).build()
    config.data.source = "labels"
    with pytest.raises(ConfigError, match=r"--config\.data\.path=ROOT"):
        make_task(config).build()
    write_table(tmp_path)
    config.data.path, config.data.layout, config.data.num_labels = str(tmp_path), "table", 21
    with pytest.raises(ConfigError, match=r"has 20 labels and config.data.num_labels is 21"):
        make_task(config).build()
    with pytest.raises(ConfigError, match="other classes"):
        pipeline.make_source(config.data, image_labels.FIELDS, classes=("car", "bus"))
    config.data.augment = "crops"
    with pytest.raises(ConfigError, match="nearest: 'crop"):
        image_labels.augmentation(config.data)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (gkgnet_coco.get_config("448"), 34_017_840),
        (gkgnet_coco.get_config("576"), 34_673_200),
        (gkgnet_coco.get_config("448,tiny"), 12_550_288),
        (vig_imagenet.get_config("ti,plain"), 10_714_376),
    ],
)
def test_published_models_have_their_parameters(config, parameters):
    task = make_task(config)
    parts = split(nnx.eval_shape(lambda: task.build(pretrained=False)), config.trainable)
    assert count(parts.trainable) == parameters
    assert count(parts.frozen) == 0
