"""`python -m vadapt.weights export` and `merge` of a run: one command from what was trained."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import vadapt
from tests import compiled
from tests.test_trained import settings, write_photos
from tests.weights.test_commands import refused
from vadapt.run import run
from vadapt.tasks import make_task
from vadapt.weights.__main__ import main
from vadapt.weights.adapter_file import read_info, save_adapter, save_model

SIZE = {"width": 32, "depth": 2, "num_heads": 4}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of LoRA whose adapter acts, and the adapter file that one of PAD leaves."""
    root = tmp_path_factory.mktemp("runs")
    write_photos(root / "photos", np.random.default_rng(0))
    save_model(root / "base.safetensors", vadapt.create("dinov2_small", image_size=28, **SIZE))
    config = settings()
    config.model.backbone, config.model.weights = "dinov2_small", str(root / "base.safetensors")
    config.model.options, config.model.allow_unexpected = ConfigDict(SIZE), ()
    config.data.path, config.data.image_size = str(root / "photos"), (28, 28)
    config.data.test_longest = config.data.test_shortest = 0
    config.method = ConfigDict({"name": "lora"})
    config.optimizer.lr, config.optimizer.schedule = 0.03, ConfigDict({"name": "constant"})
    run(config, root / "lora", devices=jax.devices()[:1])
    info = read_info(root / "lora" / "adapter.safetensors")
    said = {**info.extra["config"], "method": {"name": "patchwise_scale"}}
    task = make_task(ConfigDict(said))
    task.known = {"classes": info.classes}
    (root / "pad").mkdir()
    options = {"backbone": info.backbone, "classes": info.classes, "config": said}
    save_adapter(root / "pad" / "adapter.safetensors", task.build(), **options)
    return root


def images(number, size):
    return np.random.default_rng(0).integers(0, 256, (number, *size, 3), np.uint8)


def test_the_system_is_exported(runs, tmp_path, capsys):
    out = tmp_path / "system.bin"
    arguments = [f"--run={runs / 'pad'}", f"--out={out}", "--input-size", "30", "40"]
    assert main(["export", *arguments, "--outputs", "labels", "probabilities"]) == 0
    shown = "segmentation: uint8 [b, 30, 40, 3] -> labels [b, 30, 40], probabilities ["
    assert shown in capsys.readouterr().out
    exported, loaded = vadapt.load_exported(out), vadapt.load_run(runs / "pad")
    wanted = [one.arrays["labels"] for one in loaded.predict(images(2, (30, 40)))]
    np.testing.assert_array_equal(exported(images(2, (30, 40)))["labels"], wanted)


def test_features_are_those_of_the_adapted_backbone(runs, tmp_path):
    out = tmp_path / "features.bin"
    adapter = runs / "lora" / "adapter.safetensors"
    arguments = [f"--run={adapter}", f"--out={out}", "--as-grid", "--layers", "0", "-1"]
    assert main(["export", *arguments]) == 0
    (image,) = images(1, (28, 28))
    found = vadapt.load_exported(out)(image[None])
    wanted = vadapt.load_run(adapter).features(image, (0, -1))
    for name, features in zip(("layer_0", "layer_1"), wanted, strict=True):
        np.testing.assert_allclose(found[name][0], features, atol=1e-4)


@pytest.mark.parametrize(
    ("command", "out", "file"),
    [
        ("merge", "folder", "model.safetensors"),
        ("export", "folder", "model.safetensors"),
        ("merge", "whole.safetensors", ""),
    ],
)
def test_the_folded_backbone_computes_the_same(command, out, file, runs, tmp_path):
    form = ["--format=huggingface"] if command == "export" else []
    arguments = [f"--run={runs / 'lora'}", f"--out={tmp_path / out}", *form]
    assert main([command, *arguments]) == 0
    options = {"image_size": 28, **SIZE}
    merged = vadapt.create("dinov2_small", tmp_path / out / file, **options)
    loaded = vadapt.load_run(runs / "lora")
    pixels = loaded.preprocess(images(1, (28, 28)))
    wanted = compiled.run("features", loaded.model.backbone, pixels)
    found = compiled.run("features", merged, pixels)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    plain = vadapt.create("dinov2_small", runs / "base.safetensors", **options)
    assert np.abs(compiled.run("features", plain, pixels) - wanted).max() > 1e-2
    if out == "folder":
        config = json.loads((tmp_path / out / "config.json").read_text())
        assert (config["model_type"], config["num_hidden_layers"]) == ("dinov2", 2)


def test_what_does_not_go_together_is_refused(runs, tmp_path, capsys):
    out, pad = f"--out={tmp_path / 'out'}", f"--run={runs / 'pad'}"
    for command in (["merge"], ["export", "--format=huggingface"]):
        assert "depends on the input" in refused(capsys, *command, pad, out)
    assert "say of what: --run=DIR" in refused(capsys, "export", out)
    assert "nothing to merge: give --run" in refused(capsys, "merge", out, "--backbone=x")
    error = refused(capsys, "merge", pad, out, "--image-size", "28")
    assert "--image-size does not go with --run" in error
    assert "say of which layers" in refused(capsys, "export", pad, out, "--as-grid")
    error = refused(capsys, "export", pad, out, "--layers=-1", "--outputs", "labels")
    assert "give --run, and no --layers" in error
    assert "allowed: 'labels', 'probabilities'" in refused(
        capsys, "export", pad, out, "--outputs", "scores"
    )
    assert "no run at" in refused(capsys, "export", f"--run={tmp_path / 'none'}", out)
    assert not list(tmp_path.iterdir())
