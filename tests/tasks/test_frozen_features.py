"""Features on disk: the same losses as from images, and no cache that is not this run's is used."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.training.toy import full_disk
from vadapt import sharding
from vadapt.configs import linear_dinov2
from vadapt.data.scenes import CLASSES
from vadapt.errors import ConfigError, DataError, TrainingError
from vadapt.run import run
from vadapt.tasks import feature_cache, frozen_features
from vadapt.tasks.segmentation import SegmentationTask

LENGTH = 19  # no multiple of a batch


def config_of(cache="", **changes):
    config = linear_dinov2.get_config("scenes")
    config.batch_size, config.total_steps, config.data.num_scenes = 8, 4, LENGTH
    config.data.augment, config.data.cache = False, str(cache)
    config.data.image_size = (32, 32)
    config.task.layers = (2, 5)
    config.test = ConfigDict({"clean": {"num_scenes": 3, "scene_seed": 9}})
    config.eval.batch, config.run.log_every = 4, 1
    config.update_from_flattened_dict(changes)
    return config


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_run_is_the_same_from_features_as_from_images(tmp_path, capsys):
    plain = run(config_of(), tmp_path / "plain")
    result = run(config_of(tmp_path / "c"), tmp_path / "run")
    assert "storing features of 19 images" in capsys.readouterr().out
    assert len(losses(tmp_path / "plain")) == 4
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(tmp_path / "plain"), rtol=1e-5)
    assert result.keys() == plain.keys()
    assert result["clean/miou/adapted"] == pytest.approx(plain["clean/miou/adapted"], abs=0.05)
    assert (tmp_path / "run" / "pictures" / "segmentation_000004.png").exists()
    frozen_features.open_cache(SegmentationTask(config_of(tmp_path / "c")))
    assert "storing" not in capsys.readouterr().out
    # To evaluate takes no features.
    evaluated = run(config_of(tmp_path / "none"), tmp_path / "run", mode="evaluate")
    assert evaluated["clean/miou/adapted"] == result["clean/miou/adapted"]
    assert not (tmp_path / "none").exists()


def test_the_data_are_the_same_ones_from_features_as_from_images(tmp_path):
    """A run may go on with a cache, or without: `config.data.cache` is free."""
    features, images = (
        SegmentationTask(config_of(cache)).stream().identity() for cache in (tmp_path / "c", "")
    )
    assert features == images
    assert images["data"]["records"] == LENGTH


def test_batches_are_what_the_backbone_gives_in_the_compute_type(tmp_path):
    step = {"parallel.step.compute_dtype": "bfloat16", "parallel.frozen_dtype": "bfloat16"}
    task = SegmentationTask(config_of(tmp_path, **step))
    plain = SegmentationTask(config_of(**step))
    stream = task.stream()
    batch, images = next(stream), next(plain.stream())
    stream.close()
    shapes = {name: (value.shape, value.dtype) for name, value in batch.items()}
    assert shapes == {k: (v.shape, v.dtype) for k, v in task.batch_shapes().items()}
    assert batch["features_1"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(batch["mask"], images["mask"])
    features, trees = frozen_features._features(plain.build(), plain.config)
    # An image a device, as they were computed: bfloat16 differs by its last bit with the batch.
    mesh = sharding.make_mesh()
    placed = sharding.place_batch(images, mesh)
    trees = jax.device_put(trees, sharding.replicated(mesh))
    expected = jax.jit(features)(trees, placed["image"], placed["size"])
    for i, found in enumerate(frozen_features.maps(batch)):
        np.testing.assert_array_equal(found, expected[i])
    assert (tmp_path / "features_0.npy").stat().st_size == 128 + LENGTH * 4 * 4 * 96 * 2


def test_a_stopped_filling_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "_SAVE_EVERY", 0.0)
    task = SegmentationTask(config_of(tmp_path / "whole"))
    whole = frozen_features.open_cache(task)
    real, starts = frozen_features._compute, []

    def failing(model, config, source, first):
        starts.append(first)
        for number, batch in enumerate(real(model, config, source, first)):
            if number == 1 and len(starts) == 1:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(frozen_features, "_compute", failing)
    task = SegmentationTask(config_of(tmp_path / "stopped"))
    with pytest.raises(KeyboardInterrupt):
        frozen_features.open_cache(task)
    assert not feature_cache.is_complete(tmp_path / "stopped")
    task.config.batch_size = 16  # whose first batch holds what is there, and more
    cache = frozen_features.open_cache(task)
    assert starts == [0, 8]
    assert len(cache) == LENGTH
    for i in range(LENGTH):
        for name, value in whole[i].items():
            np.testing.assert_allclose(cache[i][name], value, atol=1e-5)


def test_other_features_and_other_files_are_refused(tmp_path):
    frozen_features.open_cache(SegmentationTask(config_of(tmp_path / "c")))
    other = {"data.num_scenes": LENGTH + 1, "task.norm": False, "model.weights": ""}
    with pytest.raises(ConfigError, match="not this run's") as caught:
        frozen_features.open_cache(SegmentationTask(config_of(tmp_path / "c", **other)))
    for name in ("images: 19 there, 20 now", "task.norm: True there, False now", "weights: '"):
        assert name in str(caught.value)
    assert "layers" not in str(caught.value)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(ConfigError, match=r"holds other files \(a\.png\)"):
        frozen_features.open_cache(SegmentationTask(config_of(tmp_path / "photos")))
    path = tmp_path / "c" / "mask.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged"):
        frozen_features.open_cache(SegmentationTask(config_of(tmp_path / "c")))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"data.augment": True}, r"config\.data\.augment=True"),
        ({"trainable": "everything"}, r"config\.trainable='everything'"),
        ({"trainable": "head/.*|backbone/blocks/5/.*"}, r"config\.trainable="),
        ({"method.name": "rein"}, r"config\.method\.name='rein'"),
        ({"model.options": ConfigDict({"drop_path_rate": 0.1})}, r"drop_path_rate=0\.1"),
    ],
)
def test_what_stands_in_the_way_is_named(changes, name, tmp_path):
    config = config_of(tmp_path / "c", **changes)
    with pytest.raises(ConfigError, match=name):
        SegmentationTask(config).stream()
    assert not (tmp_path / "c").exists()


def test_a_disk_too_small_is_said_before_and_a_full_one_while(tmp_path, monkeypatch):
    task = SegmentationTask(config_of(tmp_path / "c"))
    with full_disk(100_000), pytest.raises(TrainingError, match="cannot write"):
        frozen_features.open_cache(task)
    usage = feature_cache.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"19 images take \d+\.\d KiB more .* 1000 B are free"):
        frozen_features.open_cache(task)


def test_scenes_of_one_size_are_not_touched_without_augmentation():
    task = SegmentationTask(config_of())
    stream = task.stream()
    batch = next(stream)
    stream.close()
    assert batch["mask"].max() < len(CLASSES)
    whole = {task.source[i]["image"].tobytes() for i in range(LENGTH)}
    assert all(image.tobytes() in whole for image in batch["image"])
