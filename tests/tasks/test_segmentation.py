"""Segmentation: a user's folder trained on and predicted, the step, and exact testing."""

import contextlib
import csv
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from tests import compiled
from vadapt import adapters, models, predict
from vadapt.configs import linear_dinov2, pad_soda, parts, spm_cityscapes
from vadapt.data import pipeline
from vadapt.data.scenes import CLASSES, SceneOptions, Scenes
from vadapt.data.sources import Joined
from vadapt.errors import ConfigError, WeightsError
from vadapt.metrics.segmentation import confusion_matrix, mean_iou
from vadapt.partition import flatten, split, variables
from vadapt.run import run
from vadapt.tasks import labelled
from vadapt.tasks.segmentation import SegmentationTask, pixel_scores
from vadapt.weights.adapter_file import save_adapter
from vadapt.weights.files import read_arrays


def scenes(**changes):
    config = linear_dinov2.get_config("scenes")
    config.batch_size, config.data.num_scenes, config.eval.batch = 4, 12, 4
    for name in config.test:
        config.test[name].num_scenes = 6
    config.update(changes)
    return config


def write_folder(root):
    """Scenes as a user's folder: images and masks of two sizes in two splits."""
    for split_name, seed, number in (("train", 0, 24), ("val", 7, 5)):
        for i in range(number):
            height, width = (48, 64) if i % 2 else (56, 48)
            options = SceneOptions(height=height, width=width)
            record = Scenes(number, fields=("image", "mask"), seed=seed, options=options)[i]
            for folder, array in (("images", record["image"]), ("masks", record["mask"])):
                path = root / folder / split_name / f"{i:02}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    (root / "dataset.yaml").write_text(f"classes: [{', '.join(CLASSES)}]\n")


def folder_config(root):
    """The quick start for a folder, with the micro backbone and the size of a toy."""
    config = linear_dinov2.get_config()
    config.total_steps, config.batch_size = 30, 8
    data = config.data
    data.path, data.image_size = str(root), (48, 48)
    data.short_edges, data.longest = (48, 64), 128
    data.test_longest, data.test_shortest = 96, 48
    config.model.backbone, config.model.weights = "vit_micro", "vit_micro_scenes"
    config.model.options = ConfigDict({"positions": "sincos"})
    config.model.allow_unexpected = ("decoder/.*",)
    config.task.layers = (5,)
    config.optimizer.lr = 0.3 * config.batch_size / 256
    config.parallel.frozen_dtype = config.parallel.step.compute_dtype = "float32"
    config.eval.crop, config.eval.batch, config.eval.windows = (48, 48), 2, 2
    parts.look_up_every(config, 30)
    return config


def test_a_users_folder_is_trained_on_and_predicted(tmp_path, capsys, caplog):
    write_folder(tmp_path / "data")
    images, masks = (tmp_path / "data" / name / "val" for name in ("images", "masks"))
    (images / "02_broken.png").write_bytes((images / "02.png").read_bytes()[:99])
    (masks / "02_broken.png").write_bytes((masks / "02.png").read_bytes())
    result = run(folder_config(tmp_path / "data"), tmp_path / "run")
    assert result["val/miou/adapted"] > 15  # percent; chance is below 3
    assert (tmp_path / "run" / "pictures" / "segmentation_000030.png").exists()
    (said,) = caplog.messages
    assert "02_broken.png" in said
    assert "it is left out" in said
    arguments = [f"--workdir={tmp_path / 'run'}", f"--images={images}", f"--out={tmp_path / 'out'}"]
    assert predict.main(arguments) == 0
    assert "5 images" in capsys.readouterr().out
    found = np.zeros((len(CLASSES), len(CLASSES) + 1), np.int64)
    for path in sorted(images.glob("??.png")):
        labels = np.asarray(Image.open(tmp_path / "out" / "labels" / path.name))
        truth = np.asarray(Image.open(masks / path.name))
        overlay = Image.open(tmp_path / "out" / "overlays" / f"{path.stem}.jpg")
        assert labels.shape == truth.shape == overlay.size[::-1]
        found += np.asarray(confusion_matrix(jnp.asarray(labels), jnp.asarray(truth), len(CLASSES)))
    assert predict.main([*arguments, "--format=png,csv", "--confidences"]) == 0
    sure = np.asarray(Image.open(tmp_path / "out" / "confidences" / "00.png"))
    assert sure.shape == np.asarray(Image.open(masks / "00.png")).shape
    assert sure.min() >= 255 // len(CLASSES)
    rows = (tmp_path / "out" / "labels.csv").read_text().splitlines()
    assert rows[0] == "image,label,share,confidence"
    first = [float(row.split(",")[2]) for row in rows if row.startswith("00.png,")]
    assert first == sorted(first, reverse=True)
    assert sum(first) == pytest.approx(1, abs=1e-4)
    # What the run reported, from the files that a user gets.
    assert 100 * mean_iou(found) == pytest.approx(result["val/miou/adapted"], abs=0.5)
    check_the_closer_look(tmp_path, result, capsys)


def check_the_closer_look(tmp_path, result, capsys):
    """To evaluate the run leaves its scores and writes files about classes and images."""
    nothing = tmp_path / "data" / "masks" / "val" / "04.png"
    config = folder_config(tmp_path / "data")
    again = run(config, tmp_path / "run", mode="evaluate", out=tmp_path / "looked")
    assert again == result
    Image.fromarray(np.full_like(np.asarray(Image.open(nothing)), 255)).save(nothing)
    capsys.readouterr()
    config.eval.num_worst = 2
    run(config, tmp_path / "run", mode="evaluate", out=tmp_path / "looked")
    said, folder = capsys.readouterr().out, tmp_path / "looked" / "evaluation" / "val"
    names = "classes.csv, confusion.csv, confusion.png, worst.csv, worst.png"
    assert said.endswith(f"{folder}: {names}\n")
    table = f"val: {len(CLASSES)} classes by IoU, the worst first"
    assert table in said
    assert table in (tmp_path / "looked" / "log.txt").read_text()
    header, *rows = csv.reader((folder / "worst.csv").open())
    assert header == ["image", "mIoU"]
    images = tmp_path / "data" / "images" / "val"
    # All but the broken one; that without a labeled pixel has no score.
    assert sorted(name for name, _ in rows) == [str(images / f"{i:02}.png") for i in range(5)]
    assert rows[-1] == [str(images / "04.png"), ""]
    scores = [float(score) for _, score in rows[:-1]]
    assert scores == sorted(scores)
    header, *rows = csv.reader((folder / "confusion.csv").open())
    assert [row[0] for row in rows] == header[1:-1] == list(CLASSES)
    counts = np.array([row[1:] for row in rows], int)
    result = json.loads((tmp_path / "looked" / "evaluation.json").read_text())
    assert 100 * mean_iou(counts) == result["val/miou/adapted"]
    config.eval.num_worst = 101
    with pytest.raises(ConfigError, match=r"config\.eval\.num_worst is 101"):
        run(config, tmp_path / "run", mode="evaluate", out=tmp_path / "looked")


def test_only_the_head_learns_and_every_term_is_reported():
    task = SegmentationTask(scenes())
    model = task.build()
    parts = split(model)
    assert {path.split("/")[0] for path in flatten(parts.trainable)} == {"head"}
    batch = {name: jnp.asarray(value) for name, value in next(task.stream()).items()}
    shapes = {name: (value.shape, value.dtype) for name, value in batch.items()}
    assert shapes == {k: (v.shape, v.dtype) for k, v in task.batch_shapes().items()}
    loss, terms = compiled.run(
        lambda model, batch: task.loss(model, batch, jax.random.key(0)), model, batch
    )
    assert set(terms) == {"loss_seg"}
    np.testing.assert_allclose(loss, np.log(len(CLASSES)), atol=0.5)


def test_testing_counts_every_element_once_whatever_fills_batches_up():
    config = scenes()
    task = SegmentationTask(config)
    model = task.build()
    data = pipeline.data_sets(config, "test")["other"]
    source = pipeline.make_source(data, labelled.READS)
    feed = labelled.evaluation_feed(data)
    batches = list(pipeline.evaluation_batches(data, feed, source, 4))
    assert [int(batch["valid"].sum()) for batch in batches] == [4, 2]
    whole = np.zeros((len(CLASSES), len(CLASSES) + 1), np.int64)
    for i in range(len(source)):
        found = task.predict(model, source[i]["image"][None])
        truth = jnp.asarray(source[i]["mask"])[None]
        whole += np.asarray(confusion_matrix(jnp.asarray(found), truth, len(CLASSES)))
    odd = np.zeros((1, 50, 37, 3), np.uint8)  # no multiples of a patch
    assert task.predict(model, odd).shape == (1, 50, 37)
    scores = task.evaluate(model)
    assert scores["other/miou"] == pytest.approx(100 * mean_iou(whole), abs=1e-3)
    assert set(scores) >= {"clean/miou", "mean/miou", "mean/aacc"}


def test_a_report_has_the_scores_of_testing_and_every_image_by_itself():
    task = SegmentationTask(scenes())
    model = task.build()
    scores, reports = task.report(model)
    assert scores == task.evaluate(model)
    assert list(reports) == ["clean", "other"]
    report, images = reports["other"], reports["other"].images
    iou = {row["class"]: row["IoU"] for row in report.rows}
    assert {name: iou[name] for name in iou if not np.isnan(iou[name])} == {
        name: scores[f"other/iou/{name}"] for name in CLASSES if f"other/iou/{name}" in scores
    }
    data = pipeline.data_sets(task.config, "test")["other"]
    source = pipeline.make_source(data, labelled.READS)
    whole, alone = 0, []
    for i in range(len(source)):
        found = jnp.asarray(task.predict(model, source[i]["image"][None]))
        counts = confusion_matrix(found, jnp.asarray(source[i]["mask"])[None], len(CLASSES))
        whole = whole + np.asarray(counts)
        alone.append(100 * mean_iou(np.asarray(counts)))
    np.testing.assert_array_equal(report.confusion, whole)
    assert images.elements.tolist() == np.argsort(alone, kind="stable").tolist()
    np.testing.assert_allclose(images.scores, np.sort(alone), rtol=1e-5)
    assert images.name(3) == "element 3"
    few, more = (images.draw(images.worst(number)) for number in (2, 5))
    assert more.shape[0] - few.shape[0] == 3 * (192 + 8)


def test_a_class_that_is_never_seen_is_named_once(tmp_path, caplog):
    write_folder(tmp_path)
    path = tmp_path / "dataset.yaml"
    path.write_text(path.read_text().replace("]", ", unicorn]"))
    config = folder_config(tmp_path)
    task = SegmentationTask(config)
    with contextlib.closing(task.stream()) as stream:
        for _ in range(len(task.source) // config.batch_size):
            next(stream)
    model = task.build()
    for _ in range(2):
        task.evaluate(model)
    said = [text for text in caplog.messages if "nothing is labelled as" in text]
    assert [text.partition(":")[0] for text in said] == ["test set 'val'", "training crops"]
    assert all("unicorn" in text for text in said)


def test_padding_is_exactly_zero_to_the_model():
    data = linear_dinov2.get_config().data
    images = jnp.full((1, 4, 6, 3), 124, jnp.uint8)
    pixels = labelled.normalise(data, images, jnp.asarray([[3, 4]]))
    assert float(jnp.abs(pixels[0, 3:]).max()) == float(jnp.abs(pixels[0, :, 4:]).max()) == 0.0
    assert float(jnp.abs(pixels[0, :3, :4]).min()) > 0.0


def test_sources_and_classes_that_are_not_there_are_said(tmp_path):
    config = linear_dinov2.get_config()
    with pytest.raises(ConfigError, match=r"--config\.data\.path=ROOT"):
        pipeline.make_source(config.data, labelled.READS)
    write_folder(tmp_path)
    (tmp_path / "dataset.yaml").unlink()
    config.data.path = str(tmp_path)
    task = SegmentationTask(config)
    with pytest.raises(ConfigError, match=r"--config\.data\.num_classes"):
        task.build()
    config.data.num_classes = 3
    assert task.classes == ("0", "1", "2")
    for number in (-1, 256):
        config.data.num_classes = number
        with pytest.raises(ConfigError, match=f"num_classes is {number}; .* from 1 to 255"):
            _ = task.classes
    with pytest.raises(ValueError, match="unknown argument"):
        linear_dinov2.get_config("tiny")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"eval": {"crop": (60, 64)}}, r"config\.eval\.crop is \(60, 64\).* give \(56, 64\) or"),
        ({"data": {"image_size": (64, 60)}}, r"config\.data\.image_size is .* or \(64, 64\)"),
    ],
)
def test_sizes_that_a_backbone_would_stretch_are_refused_before_anything_runs(setting, message):
    config = scenes()
    for section, changes in setting.items():
        config[section].update(changes)
    with pytest.raises(ConfigError, match=message):
        SegmentationTask(config).build()
    with pytest.raises(ConfigError, match=message):  # to plan, too
        nnx.eval_shape(lambda: SegmentationTask(config).build(pretrained=False))


def small(module, arg="scenes"):
    """A config's version on scenes with few of them."""
    config = module.get_config(arg)
    config.batch_size, config.data.num_scenes = 8, 12
    return config


def test_what_pretraining_learned_is_gone_on_with(tmp_path):
    options = {"positions": "sincos"}
    plain = models.create(
        "vit_micro", "vit_micro_scenes", allow_unexpected=["decoder/.*"], **options, image_size=64
    )
    learned = adapters.apply(plain, "patchwise_scale", hidden=8, rngs=nnx.Rngs(3))
    file = tmp_path / "adapter.safetensors"
    save_adapter(file, learned, backbone="vit_micro", options=options)
    config = pad_soda.get_config()
    config.model.weights, config.model.adapter = "vit_micro_scenes", str(file)
    model = adapters.apply(
        models.create("vit_micro", image_size=96, **config.model.options),
        "patchwise_scale",
        hidden=8,
    )
    report = models.load_adapted(model, config.model)
    assert report.resized == ["pos_embed: 28x28 to 12x12"]
    assert {path.rpartition("/")[2] for path in report.missing} == {"table", "gamma"}
    found = {path: value[...] for path, value in variables(model).items()}
    arrays = read_arrays(file)
    assert len(arrays) > 20
    for path, value in arrays.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    kernel = "blocks/3/attn/inner/qkv/kernel"
    np.testing.assert_array_equal(found[kernel], variables(plain)[kernel][...])
    # Adapters of another base are refused.
    config.model.weights = ""
    with pytest.raises(WeightsError, match="was trained on base weights"):
        models.load_adapted(model, config.model)


def test_interim_maps_of_matchers_are_a_term_of_the_loss():
    config = small(spm_cityscapes)
    config.neck, config.head = ConfigDict({"name": "none"}), ConfigDict({"name": "linear"})
    task = SegmentationTask(config)
    model = task.build()
    batch = {name: jnp.asarray(value) for name, value in next(task.stream()).items()}
    graph, state = nnx.split(model)
    key = jax.random.key(0)

    def step(state, batch, weight):
        model = nnx.merge(graph, state)
        model.backbone.between.loss_weight = weight
        return task.loss(model, batch, key)

    loss, terms = jax.jit(step, static_argnums=2)(state, batch, 0.4)
    np.testing.assert_allclose(terms["loss_semantic"], 0.4 * np.log(len(CLASSES)), atol=0.05)
    np.testing.assert_allclose(loss, sum(terms.values()), rtol=1e-6)
    without = jax.eval_shape(lambda *args: step(*args, 0.0), state, batch)[1]
    assert set(terms) - set(without) == {"loss_semantic"}


def test_sets_are_joined_to_train_on():
    config = scenes()
    config.train = ConfigDict({"one": {"num_scenes": 3}, "two": {"num_scenes": 4, "scene_seed": 5}})
    source = pipeline.training_source(config, labelled.READS)
    assert len(source) == 7
    assert source.classes == tuple(CLASSES)
    two = pipeline.make_source(pipeline.data_sets(config, "train")["two"], labelled.READS)
    np.testing.assert_array_equal(source[3]["image"], two[0]["image"])
    np.testing.assert_array_equal(source[6]["mask"], two[3]["mask"])
    other = Scenes(2, fields=("image", "mask"))
    other.classes = ("sky",)
    with pytest.raises(ConfigError, match="'b' cannot be joined"):
        Joined({"a": two, "b": other})


def test_scales_and_mirroring_are_settings_of_testing():
    config = scenes()
    config.eval.scales, config.eval.flip = (0.75, 1.0, 1.25), True
    task = SegmentationTask(config)
    model = task.build()
    image = task.source[0]["image"][None]
    several = task.predict(model, image)
    assert several.shape == (1, 64, 64)
    mirrored = task.predict(model, image[:, :, ::-1])[:, :, ::-1]

    def scores(model, images):
        return task.inference(
            functools.partial(pixel_scores, model),
            labelled.normalise(config.data, images),
            (64, 64),
        )

    found, flipped = (compiled.run(scores, model, x) for x in (image, image[:, :, ::-1]))
    np.testing.assert_allclose(flipped[:, :, ::-1], found, atol=1e-5)
    best, second = np.sort(np.asarray(found), axis=-1)[..., :-3:-1].transpose(3, 0, 1, 2)
    clear = best - second > 1e-4  # a new head's scores tie here and there, but for rounding
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(mirrored[clear], several[clear])
