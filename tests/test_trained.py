"""What was trained is used without its data, wherever it lies: finished, moved, or begun alone."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import vadapt
from tests.weights.fake_hub import serving
from vadapt.configs import linear_dinov2
from vadapt.errors import ConfigError, DataError, WeightsError
from vadapt.run import run
from vadapt.tasks import make_task
from vadapt.weights import hub
from vadapt.weights.adapter_file import load_adapter, read_info
from vadapt.weights.files import read_arrays, read_header, write_arrays
from vadapt.weights.publish import push
from vadapt.weights.sources import ASSETS

pytestmark = pytest.mark.usefixtures("two_blocks")
CLASSES, PALETTE = ("road", "car"), [[200, 10, 10], [10, 10, 200]]
ASSET = ASSETS / "vit_micro_scenes.safetensors"


def settings():
    config = linear_dinov2.get_config()
    data, model = config.data, config.model
    data.path, data.image_size, data.augment = "photos", (32, 32), False
    data.test_longest = data.test_shortest = 32
    model.backbone, model.weights = "vit_micro", "pretrained/base.safetensors"
    model.options = ConfigDict({"positions": "sincos"})
    model.allow_unexpected = ("decoder/.*", r"(backbone/)?blocks/[2-5]/.*")
    config.task.layers, config.eval.crop, config.eval.every = (1,), (), 0
    config.parallel.frozen_dtype = config.parallel.step.compute_dtype = "float32"
    config.batch_size, config.total_steps, config.run.checkpoint_every = 2, 2, 1
    return config


def write_photos(folder, rng):
    """Two images with masks to train on and two to test on, of noise."""
    mask = np.zeros((32, 32), np.uint8)
    mask[:16] = 1
    for split in ("train", "val"):
        for number in range(2):
            for kind, array in (("images", rng.integers(0, 256, (32, 32, 3), np.uint8)),
                                ("masks", mask)):  # fmt: skip
                path = folder / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    (folder / "dataset.yaml").write_text(f"classes: [road, car]\npalette: {PALETTE}\n")


@pytest.fixture(scope="module")
def project(two_blocks, tmp_path_factory):
    """A run in a folder with its data and weights, by paths from there; and what it sees."""
    root, rng = tmp_path_factory.mktemp("project"), np.random.default_rng(0)
    write_photos(root / "photos", rng)
    (root / "pretrained").mkdir()
    shutil.copy(ASSET, root / "pretrained" / "base.safetensors")
    image = rng.integers(0, 256, (40, 56, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run(settings(), "runs/mine", devices=jax.devices()[:1])
        task = make_task(settings())
        model = task.build()
        load_adapter(model, "runs/mine/adapter.safetensors")
        wanted = task.predict_image(model, image)
    shutil.rmtree(root / "photos")
    return root, image, wanted


@pytest.fixture
def moved(project, tmp_path):
    """The project where it has never been, without its data, and oneself somewhere else."""
    return shutil.copytree(project[0], tmp_path / "elsewhere" / "project")


def without_adapter(workdir):
    (workdir / "adapter.safetensors").unlink()
    return workdir


def assert_sees(loaded, project):
    _, image, wanted = project
    found = loaded.predict(image)
    np.testing.assert_array_equal(found.arrays["labels"], wanted.arrays["labels"])
    np.testing.assert_array_equal(found.pictures["overlays"], wanted.pictures["overlays"])
    np.testing.assert_allclose(
        found.confidences["confidences"], wanted.confidences["confidences"], atol=1e-5
    )


@pytest.mark.parametrize("as_it_is", [str, lambda path: path / "adapter.safetensors"])
def test_a_run_that_was_moved_is_used_without_its_data(project, moved, as_it_is):
    loaded = vadapt.load_run(as_it_is(moved / "runs" / "mine"))
    assert (loaded.classes, loaded.step) == (CLASSES, None)
    assert loaded.task.palette.tolist() == PALETTE
    assert_sees(loaded, project)


def test_so_is_the_newest_checkpoint_of_one_that_is_not_finished(project, moved):
    loaded = vadapt.load_run(without_adapter(moved / "runs" / "mine"))
    assert (loaded.classes, loaded.step) == (CLASSES, 2)
    assert loaded.task.palette.tolist() == PALETTE
    assert_sees(loaded, project)


def test_a_workdir_alone_finds_its_weights_in_the_folder_that_it_was_run_in(project, tmp_path):
    for change in (lambda path: path, without_adapter):
        workdir = shutil.copytree(
            project[0] / "runs" / "mine", tmp_path / "a" / "b", dirs_exist_ok=True
        )
        assert_sees(vadapt.load_run(change(workdir)), project)


def test_a_file_says_by_itself_all_but_the_base(project, tmp_path, monkeypatch):
    path = tmp_path / "mine.safetensors"
    shutil.copy(project[0] / "runs" / "mine" / "adapter.safetensors", path)
    with pytest.raises(WeightsError, match=rf"of hash {read_info(path).base}, are not found"):
        vadapt.load_run(path)
    assert_sees(vadapt.load_run(path, weights=ASSET), project)
    assert_sees(vadapt.load_run(path, weights="vit_micro_scenes"), project)
    monkeypatch.chdir(tmp_path)
    shutil.copy(ASSET, "base.safetensors")
    with serving() as server:
        there = {"endpoint": server.url, "cache_dir": tmp_path / "cache"}
        push(path, "org/mine", endpoint=server.url, token="secret")
        monkeypatch.setattr(hub, "pull", functools.partial(hub.pull, **there))
        path.unlink()
        loaded = vadapt.load_run("hf:org/mine")
    assert_sees(loaded, project)
    assert repr(loaded) == "LoadedRun('hf:org/mine': segmentation with vit_micro, 2 classes)"


def test_no_place_is_in_the_file(project):
    header = read_header(project[0] / "runs" / "mine" / "adapter.safetensors")
    assert str(project[0]) not in str(header)
    assert "photos" not in header["config"]


def test_base_weights_are_known_by_their_hash(project, moved):
    others = {name: np.asarray(array) + 1 for name, array in read_arrays(ASSET).items()}
    base = moved / "pretrained" / "base.safetensors"
    write_arrays(base, others)
    with pytest.raises(WeightsError, match="was trained on base weights"):
        vadapt.load_run(moved / "runs" / "mine", weights=base)
    shutil.copy(ASSET, moved / "pretrained" / "right.safetensors")
    loaded = vadapt.load_run(moved / "runs" / "mine", weights=moved / "pretrained")
    assert_sees(loaded, project)
    shutil.copy(ASSET, moved.parent / "base.safetensors")
    adapter = shutil.move(moved / "runs" / "mine" / "adapter.safetensors", moved / "runs")
    assert_sees(vadapt.load_run(adapter), project)


def test_features_and_pixels_are_those_of_testing(project):
    root, image, _ = project
    loaded = vadapt.load_run(root / "runs" / "mine")
    pixels = loaded.preprocess(image)
    assert pixels.shape == (1, 24, 32, 3)  # 32 x 23 to fit, in whole patches
    np.testing.assert_array_equal(pixels, vadapt.preprocess(image, loaded))
    (given,) = loaded.features(image)
    np.testing.assert_allclose(given, loaded.model.features(pixels).maps[0][0], atol=1e-4)
    first = loaded.features([image, image[:20]], layers=0)
    assert [x.shape for x in first] == [(3, 4, 96), (1, 4, 96)]
    with pytest.raises(DataError, match="2 images of sizes"):
        loaded.preprocess([image, image[:20]])


def test_several_images_of_any_kind_are_predicted(project, tmp_path):
    root, image, wanted = project
    Image.fromarray(image).save(tmp_path / "a.png")
    loaded = vadapt.load_run(root / "runs" / "mine")
    floats = image.astype(np.float32) / 255
    given = [image, floats, Image.fromarray(image), tmp_path / "a.png", str(tmp_path / "a.png")]
    labels = [found.arrays["labels"] for found in loaded.predict(given)]
    np.testing.assert_array_equal(labels, [wanted.arrays["labels"]] * len(given))
    batch = loaded.predict(np.stack([image, image]))
    np.testing.assert_array_equal(batch[1].arrays["labels"], wanted.arrays["labels"])
    shares = {row["label"]: row["share"] for row in wanted.rows}
    for k, name in enumerate(CLASSES):
        assert shares.get(name, 0) == pytest.approx((wanted.arrays["labels"] == k).mean())
    sure = wanted.confidences["confidences"]
    assert sure.shape == image.shape[:2]
    assert 0.5 <= sure.min() <= sure.max() <= 1  # of two classes the likelier


def test_an_older_file_beside_its_config_is_used(project, moved):
    workdir = moved / "runs" / "mine"
    adapter = workdir / "adapter.safetensors"
    header = {k: v for k, v in read_header(adapter).items() if k not in ("config", "palette")}
    write_arrays(adapter, {k: np.asarray(v) for k, v in read_arrays(adapter).items()}, header)
    loaded = vadapt.load_run(workdir)
    labels = loaded.predict(project[1]).arrays["labels"]
    np.testing.assert_array_equal(labels, project[2].arrays["labels"])
    lone = shutil.move(adapter, moved)
    with pytest.raises(ConfigError, match=r"put it beside the config\.json of its run"):
        vadapt.load_run(lone)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither a workdir nor an adapter file"):
        vadapt.load_run(tmp_path / "none")
    (tmp_path / "config.json").write_text(json.dumps({"model": {"backbone": "vit_micro"}}))
    with pytest.raises(ConfigError, match="holds no run to use"):
        vadapt.load_run(tmp_path)


def test_a_model_says_how_it_sees_images():
    model = vadapt.create("dinov2_small", depth=1, image_size=28)
    image = np.full((50, 40, 3), 128, np.uint8)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    wanted = np.broadcast_to((128 / 255 - mean) / std, (1, 28, 28, 3))
    np.testing.assert_allclose(vadapt.preprocess(image, model), wanted, atol=1e-5)
    adapted = vadapt.adapt(model, "lora", rank=2)
    assert vadapt.preprocess(image, adapted, image_size=(14, 42)).shape == (1, 14, 42, 3)
    model.statistics = None
    with pytest.raises(ConfigError, match="does not say which pixels"):
        vadapt.preprocess(image, model)
    plain = vadapt.preprocess(image, model, statistics=(0.0, 1.0))
    np.testing.assert_allclose(plain, np.full((1, 28, 28, 3), 128 / 255), atol=1e-6)


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        ("model", "options", {"width": 2**16, "num_heads": 1}, "asks for a model of"),
        ("model", "options", {"width": -8}, "by which no model can be built"),
        ("head", "name", 5, "by which no model can be built"),
        ("task", "layers", [2**12], "whole numbers up to"),
    ],
)
def test_a_header_that_asks_for_another_model_than_the_file_holds_is_refused_before_memory_is_taken(
    project, tmp_path, monkeypatch, section, name, value, words
):
    adapter = project[0] / "runs" / "mine" / "adapter.safetensors"
    header = read_header(adapter)
    config = json.loads(header["config"])
    config[section][name] = value
    path = tmp_path / "mine.safetensors"
    arrays = {k: np.asarray(v) for k, v in read_arrays(adapter).items()}
    write_arrays(path, arrays, {**header, "config": json.dumps(config)})
    monkeypatch.setattr("vadapt.models.load", None)  # what comes after the model was made
    with pytest.raises((WeightsError, ConfigError), match=words) as error:
        vadapt.load_run(path, weights=ASSET)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
