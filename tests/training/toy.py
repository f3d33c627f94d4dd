"""A task that compiles in a moment, for tests of the loop: a frozen layer and a head above it."""

import contextlib
import os
import resource
import signal
import sys
import time
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from vadapt.data.stream import make_stream
from vadapt.errors import VadaptError
from vadapt.partition import Head
from vadapt.runtime import distributed
from vadapt.training import loop

WIDTH = 128  # a head of 2^14 numbers, the smallest that FSDP splits


def toy_config(**changes):
    """Settings of a run of twelve steps; changes such as run={"log_every": 1} go in at the end."""
    config = ConfigDict()
    config.total_steps, config.batch_size, config.seed = 12, 8, 0
    config.trainable = "default"
    config.task = {"noise": 0.1, "pause": 0.0, "stop_at": -1, "kill_at": -1, "nan_at": -1}
    config.optimizer = {"lr": 0.1, "lr_batch": 256, "beta2": 0.95, "weight_decay": 0.05}
    config.optimizer.schedule = {"name": "cosine", "warmup": 0.2}
    config.parallel = {"fsdp": 1, "frozen_dtype": "float32"}
    config.parallel.step = {"compute_dtype": "float32", "accumulate": 1}
    config.parallel.step.update({"remat": "none", "ema": 0.0})
    config.eval = {"every": 0}
    config.run = {"log_every": 2, "checkpoint_every": 4, "keep_last": 3, "wandb": False}
    config.run.pictures_every = 0
    config.update(changes)
    return config


@contextlib.contextmanager
def full_disk(size):
    """No file can grow beyond that many bytes, for whoever runs the tests, root or not.

    The tests' own cache of programs is only read then: an entry cut there would stay.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with jax_options(jax_persistent_cache_min_compile_time_secs=1e9):
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def caches_of_their_own():
    """Runs keep their programs in their own folders, as where jax was told of no other place."""
    return jax_options(jax_compilation_cache_dir=None)


@contextlib.contextmanager
def jax_options(**options):
    """Set options of jax for a while; its cache of programs is opened anew."""
    before = {name: getattr(jax.config, name) for name in options}
    try:
        _set(options)
        yield
    finally:
        _set(before)


def _set(options):
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


class ToyModel(nnx.Module):
    """Noisy features of a frozen layer, and a head that reads the image back from them."""

    def __init__(self, rngs):
        self.backbone = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.head.kernel = Head(self.head.kernel[...])
        self.head.bias = Head(self.head.bias[...])


class ToyTask:
    """What `fit` asks of a task; a stop or a NaN comes with the batch of the wanted step."""

    backbone_options = MappingProxyType({})

    def __init__(self, config):
        self.config = config

    def build(self, *, pretrained=True):
        return ToyModel(nnx.Rngs(0))

    def batch_shapes(self):
        raise NotImplementedError

    def evaluate(self, model, on="test"):
        return {}

    def export(self, model):
        return model

    def stream(self):
        images = np.random.default_rng(0).integers(0, 256, (40, 8, WIDTH // 8, 1), np.uint8)
        source = [{"image": image, "bad": np.float32(0.0)} for image in images]
        stream = make_stream(
            source,
            [],
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=0,
        )
        return Disturbed(stream, self.config.task)

    def loss(self, model, batch, key):
        images = batch["image"].reshape(batch["image"].shape[0], -1).astype(jnp.float32) / 255
        features = jnp.tanh(model.backbone(images.astype(model.backbone.kernel.dtype)))
        noise = jax.random.uniform(key, features.shape, features.dtype, -1.0)
        output = model.head(features + noise * self.config.task.noise)
        error = output.astype(jnp.float32) - images
        return jnp.mean(jnp.square(error)) + jnp.mean(batch["bad"]), {}

    def pictures(self, model, batch):
        return {"head": np.zeros((2, 2, 3), np.uint8)}


class Disturbed:
    """A stream in which something happens when the batch of a certain step is asked for."""

    def __init__(self, stream, options):
        self.stream, self.options = stream, options

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def __next__(self):
        batch = next(self.stream)
        time.sleep(self.options.pause)
        if self.stream.position == self.options.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.stream.position == self.options.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.stream.position == self.options.nan_at:
            batch["bad"] = np.full_like(batch["bad"], np.nan)
        return batch


def main(workdir, total_steps, pause, fsdp=1, checkpoint_every=5, stop_at=-1, kill_at=-1):
    """A run of its own process, to be stopped or killed, by itself if it is told the step."""
    distributed.start(timeout=60)
    config = toy_config(total_steps=int(total_steps), parallel={"fsdp": int(fsdp)})
    config.run.update({"log_every": 1, "checkpoint_every": int(checkpoint_every)})
    config.task.pause = float(pause)
    config.task.update({"stop_at": int(stop_at), "kill_at": int(kill_at)})
    alone = jax.process_count() == 1
    try:
        loop.fit(ToyTask(config), config, workdir, devices=jax.devices()[:1] if alone else None)
    except VadaptError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        distributed.leave_at_once()
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
