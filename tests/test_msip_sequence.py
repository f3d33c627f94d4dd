"""From raw downloads to an adapter: the sequence that configs/pad_msip.py documents."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests import compiled
from tests.datasets.test_msip import fake_downloads
from vadapt import models
from vadapt.configs import pad_msip
from vadapt.data.msip import Msip
from vadapt.data.roi_candidates import main as compute_candidates
from vadapt.data.scenes import SceneOptions, make_scene
from vadapt.datasets.msip.__main__ import main as make_msip
from vadapt.run import run
from vadapt.tasks import make_task
from vadapt.training.loop import fit
from vadapt.weights.adapter_file import load_adapter

# Weights of which a decoder of one block and a backbone of two have no place.
BEYOND = (r"(backbone/)?blocks/[2-5]/.*", r"decoder/blocks/[1-9]/.*")


def infrared_downloads(raw):
    """Fake downloads of all eight sets, one of them with pictures that have objects in them."""
    fake_downloads(raw)
    for number, path in enumerate(sorted((raw / "LLVIP" / "infrared" / "train").glob("*.jpg"))):
        scene = make_scene(7, number, SceneOptions(height=160, width=200))
        Image.fromarray(scene.thermal).save(path)
    return raw


def small(root):
    """The published config at a laptop's size."""
    config = pad_msip.get_config("scenes")
    published = pad_msip.get_config()
    config.data.source, config.data.path = published.data.source, str(root)
    config.data.roi_probability = published.data.roi_probability
    config.data.roi_min_side = published.data.roi_min_side
    config.data.image_size = (32, 32)
    config.total_steps, config.batch_size = 4, 8
    config.task.decoder_depth = 1
    config.model.allow_unexpected = (*config.model.allow_unexpected, *BEYOND)
    config.eval.probe_scenes = 8
    config.run.log_every = config.run.checkpoint_every = 1
    return config


@pytest.mark.usefixtures("two_blocks")
def test_raw_downloads_become_an_adapter(tmp_path, capsys):
    raw, root, workdir = infrared_downloads(tmp_path / "raw"), tmp_path / "MSIP", tmp_path / "run"

    assert make_msip([str(raw), "--out", str(root)]) == 0
    assert "178,756" in capsys.readouterr().out

    compute_candidates([str(root), "--workers", "1"])
    source = Msip(str(root))
    assert source.has_rois
    assert sum(len(source[i]["rois"]) for i in range(len(source))) > 0

    config = small(root)
    stopped = fit(make_task(config), config, workdir, stop_at=2)
    assert stopped.steps == 2
    result = run(config, workdir, mode="resume")
    assert result["steps"] == 4
    steps = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]
    assert steps[-1] == 4

    backbone = models.create("vit_micro", image_size=(32, 32), positions="sincos")
    models.load(backbone, {**config.model, "allow_unexpected": (*BEYOND, "decoder/.*")})
    adapted = models.apply_method(backbone, config.method, seed=config.seed)
    load_adapter(adapted, workdir / "adapter.safetensors")
    images = jnp.ones((1, 32, 32, 3))
    assert np.isfinite(np.asarray(compiled.run("features", adapted, images))).all()
