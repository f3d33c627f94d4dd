"""Two streams into one task: labeled scenes, and others without labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.training.test_loop import assert_same_run, lines, stored
from tests.training.toy import Disturbed, ToyTask, toy_config
from vadapt.data import pipeline
from vadapt.data.pipeline import Feed
from vadapt.data.scenes import CLASSES
from vadapt.data.transforms import HorizontalFlip, RandomResizedCrop, Resize
from vadapt.losses.segmentation import cross_entropy
from vadapt.micro_batches import batch_average
from vadapt.partition import Head, mark
from vadapt.training import loop
from vadapt.training.task import Task

ROUNDING = 2e-5  # sums in another order, over eight steps of float32
STEPS, WIDTH = 8, 32


class Pixels(nnx.Module):
    """Scores of every pixel from itself and its eight neighbors."""

    def __init__(self, rngs):
        self.backbone = nnx.Conv(1, WIDTH, (3, 3), rngs=rngs)
        self.head = mark(nnx.Linear(WIDTH, len(CLASSES), rngs=rngs), Head)

    def __call__(self, images):
        return self.head(jnp.tanh(self.backbone(images.astype(jnp.float32) / 255 - 0.5)))


class AcrossDomains(ToyTask):
    """Learns classes where they are known, and to be certain where they are not."""

    def build(self, *, pretrained=True):
        return Pixels(nnx.Rngs(0))

    def source(self, data):
        crop = [RandomResizedCrop(tuple(data.image_size)), HorizontalFlip()]
        return Feed(crop, ("image", "mask"))

    def target(self, data):
        return Feed([Resize(tuple(data.image_size))])

    @property
    def feeds(self):
        return {"source": self.source, "target": self.target}

    def stream(self):
        return Disturbed(pipeline.training_streams(self.config, self.feeds), self.config.task)

    def batch_shapes(self):
        return pipeline.streams_shapes(self.config, self.feeds)

    def loss(self, model, batch, key):
        labels = batch["mask"].astype(jnp.int32)
        # Some images have labels in their upper half alone: micro-batches weigh differently.
        lower = (jnp.arange(labels.shape[1]) >= labels.shape[1] // 2)[None, :, None]
        unlabeled = lower & (labels[:, :1, :1] > 4)
        known = cross_entropy(model(batch["image"]), jnp.where(unlabeled, 255, labels))
        probs = jax.nn.softmax(model(batch["target/image"]), axis=-1)
        entropy = -(probs * jnp.log(probs)).sum(-1)
        unsure = batch_average(entropy.sum(), jnp.float32(entropy.size))
        return known + unsure, {"known": known, "unsure": unsure}


def config_of(accumulate=1, stop_at=-1):
    config = toy_config(total_steps=STEPS, run={"log_every": 1, "checkpoint_every": 3})
    config.parallel.step.accumulate, config.task.stop_at = accumulate, stop_at
    config.data = {"source": "scenes", "num_scenes": 20, "view": "thermal", "scene_seed": 0}
    config.data.update({"image_size": (16, 24), "max_corrupt": 0.0})
    config.streams = {"target": {"domain": "real", "scene_seed": 9, "num_scenes": 11}}
    return config


def fit(workdir, **changes):
    config = config_of(**changes)
    return loop.fit(AcrossDomains(config), config, workdir, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert fit(folder).finished
    return folder


def test_both_streams_teach(whole):
    first, *_, last = lines(whole)
    assert last["known"] < first["known"]
    assert last["unsure"] < first["unsure"]


def test_micro_batches_change_nothing_but_rounding(whole, tmp_path):
    fit(tmp_path, accumulate=2)
    for left, right in zip(lines(tmp_path), lines(whole), strict=True):
        assert left == pytest.approx(right, abs=ROUNDING)
    theirs = stored(whole)
    for name, value in stored(tmp_path).items():
        np.testing.assert_allclose(value, theirs[name], atol=ROUNDING, err_msg=name)


def test_a_stopped_run_goes_on_bit_for_bit(whole, tmp_path):
    assert not fit(tmp_path, stop_at=5).finished
    assert fit(tmp_path).finished
    assert_same_run(tmp_path, whole)


def test_what_a_batch_looks_like_is_told_without_reading(whole):
    task = AcrossDomains(config_of())
    assert isinstance(task, Task)
    batch = next(stream := task.stream())
    stream.close()
    found = {name: (array.shape, array.dtype) for name, array in batch.items()}
    told = {name: (x.shape, x.dtype) for name, x in task.batch_shapes().items()}
    assert found == told
    assert set(found) == {"image", "mask", "target/image"}
