"""Every config from training to predictions, and its step compiled for TPUs that are not here.

A job of its own, `pytest -m plans`: it takes minutes.
"""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from tests.planned import as_in_training, assert_adapters_promise  # noqa: F401
from tests.recipes import DISTINCT, assert_trains, config_of, shrunk
from vadapt import plan, predict, sharding
from vadapt.data.scenes import make_scene
from vadapt.errors import ConfigError
from vadapt.partition import split
from vadapt.quantization import store
from vadapt.run import run
from vadapt.tasks import make_task
from vadapt.training.program import make_program

pytestmark = pytest.mark.plans


@pytest.mark.usefixtures("two_blocks", "as_in_training")
@pytest.mark.parametrize("name", DISTINCT)
def test_every_config_does_all_that_it_can(name, tmp_path):
    """It trains with its baseline, evaluates while training, goes on, predicts and plans."""
    config, workdir = shrunk(name), tmp_path / "run"
    config.baselines = True
    assert_trains(config, workdir)
    assert (workdir / "full" / "metrics.jsonl").exists()
    result = json.loads((workdir / "result.json").read_text())
    assert any(key.endswith("/full") for key in result)
    assert_goes_on(config, workdir)
    assert_predicts(config, workdir, tmp_path)
    config.batch_size = 32
    assert_adapters_promise(plan.plan(config, "v5e:2x2"), config)


def assert_goes_on(config, workdir):
    """Without its last checkpoint, as if it had been killed, it does the last step again."""
    config.baselines = False
    before = losses(workdir)
    shutil.rmtree(workdir / "checkpoints" / "2")
    run(config, workdir, mode="resume", devices=jax.devices()[:2])
    assert len(before) == 2
    assert losses(workdir) == before


def losses(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").open())
    return [line["loss"] for line in lines if "loss" in line]


def assert_predicts(config, workdir, place):
    """Files of what it sees in an image, or a word about why there are none."""
    images = place / "images"
    images.mkdir()
    Image.fromarray(make_scene(5, 5).visible).save(images / "scene.png")
    out = place / "out"
    if config.task.name in ("mae", "milan"):
        with pytest.raises(ConfigError, match="has no `predict_image`"):
            predict.predict(workdir, images, out)
        return
    assert [*predict.predict(workdir, images, out).written] == ["scene.png"]
    kinds = {
        "segmentation": ["labels/scene.png", "overlays/scene.jpg"],
        "detection": ["coco.json", "boxes/scene.jpg"],
    }
    for file in kinds.get(config.task.name, ["labels.csv", "pictures/scene.jpg"]):
        assert (out / file).stat().st_size


@pytest.mark.usefixtures("as_in_training")
@pytest.mark.parametrize("name", DISTINCT)
def test_every_config_is_planned(name):
    """The published sizes, as far as the compiler's input."""
    # libtpu exists for Linux on x86 only.
    pytest.importorskip("libtpu", reason="libtpu is not made for this platform")
    traced, program = plan.trace(config_of(name), "v5e:4x4")
    assert program.mesh.size == 16
    assert "stablehlo.dot_general" in traced.lower().as_text()


@pytest.mark.usefixtures("two_blocks")
@pytest.mark.parametrize("name", DISTINCT)
def test_frozen_weights_in_the_compute_type_change_no_bit_of_a_step(name):
    """Loss, gradients and what is trained, as with float32 ones that are cast at every use."""
    config = shrunk(name)
    config.parallel.step.compute_dtype = "bfloat16"
    task = make_task(config)
    parts = split(task.build(), config.trainable)
    program = make_program(parts, task, config, sharding.make_mesh(1, jax.devices()[:1]))
    stream = task.stream()
    batch = next(stream)
    stream.close()
    step = jax.jit(program.step)
    results = []
    for dtype in ("float32", "bfloat16"):
        frozen = store(parts.frozen, dtype)
        results.append(step(frozen, program.begin(parts.trainable, parts.state), batch))
    for leaf, other in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.array_equal(leaf, other, equal_nan=True)
