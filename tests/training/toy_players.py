"""Toy tasks that ask more of a step: two players, a teacher that follows, a queue."""

import jax
import jax.numpy as jnp
from flax import nnx

from tests.training.toy import WIDTH, ToyTask, toy_config
from vadapt.losses.segmentation import cross_entropy
from vadapt.micro_batches import batch_average
from vadapt.partition import Head, Queue, Teacher, mark
from vadapt.runtime import distributed
from vadapt.training import loop
from vadapt.training.task import Player


def flat(batch):
    """Pixels about zero; those of every third image count half as much, as labels may."""
    images = batch["image"].reshape(batch["image"].shape[0], -1).astype(jnp.float32) / 255 - 0.5
    return images, 1.0 + (batch["image"][:, 0, 0, 0] % 3 == 0).astype(jnp.float32)


def mean(values, weights):
    return batch_average((values * weights).sum(), weights.sum())


class Pair(nnx.Module):
    """A head, and one beside it."""

    def __init__(self, second):
        rngs = nnx.Rngs(0)
        self.backbone = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.head = mark(nnx.Linear(WIDTH, WIDTH, rngs=rngs), Head)
        self.other = second(rngs)


class Players(ToyTask):
    """A generator, and a critic that tells what it made from the images."""

    def build(self, *, pretrained=True):
        return Pair(lambda rngs: mark(nnx.Linear(WIDTH, 2, rngs=rngs), Head))

    def players(self):
        return (
            Player("generator", "head/.*", self.generator),
            Player("critic", "other/.*", self.critic),
        )

    def made(self, model, batch):
        images, weights = flat(batch)
        return model.head(jnp.tanh(model.backbone(images))), images, weights

    def told(self, model, rows, truth):
        """The critic's cross entropy, over rows as pixels."""
        return cross_entropy(model.other(rows)[None, None], jnp.asarray(truth)[None, None])

    def generator(self, model, batch, key):
        made, images, weights = self.made(model, batch)
        fooled = self.told(model, made, jnp.where(weights > 1, 1, 255))
        return mean(jnp.square(made - images).mean(-1), weights) + 0.1 * fooled, {"fooled": fooled}

    def critic(self, model, batch, key):
        made, images, _ = self.made(model, batch)
        rows = jnp.concatenate([jax.lax.stop_gradient(made), images])
        truth = jnp.repeat(jnp.arange(2), len(images))
        return self.told(model, rows, truth), {}


class Following(ToyTask):
    """A student, and a teacher that is its moving average; the loss tries to move it, too."""

    def build(self, *, pretrained=True):
        return Pair(lambda rngs: mark(nnx.Linear(WIDTH, WIDTH, rngs=rngs), Teacher))

    def loss(self, model, batch, key):
        images, weights = flat(batch)
        features = jnp.tanh(model.backbone(images.astype(model.backbone.kernel.dtype)))
        wanted = jax.lax.stop_gradient(model.other(features)).astype(jnp.float32)
        assert model.other.kernel.dtype == model.head.kernel.dtype
        model.other.bias[...] = model.other.bias[...] + 1.0  # is dropped
        errors = jnp.square(model.head(features).astype(jnp.float32) - 0.5 * (wanted + images))
        return mean(errors.mean(-1), weights), {}

    def after_update(self, model, outputs):
        for name in ("kernel", "bias"):
            teacher, student = getattr(model.other, name), getattr(model.head, name)
            teacher[...] = 0.9 * teacher[...] + 0.1 * student[...]


class Memory(nnx.Module):
    """The last rows, and how many came."""

    def __init__(self, rngs):
        self.rows = Queue(jax.random.normal(rngs.params(), (WIDTH, WIDTH)))
        self.seen = Queue(jnp.zeros((), jnp.int32))


class Queued(ToyTask):
    """Features that keep away from those of the last batches."""

    def build(self, *, pretrained=True):
        return Pair(Memory)

    def loss(self, model, batch, key):
        images, weights = flat(batch)
        features = model.head(jnp.tanh(model.backbone(images)))
        near = jax.nn.logsumexp(features @ model.other.rows[...].T / WIDTH, axis=-1)
        errors = jnp.square(features - images).mean(-1)
        return mean(errors + near, weights), {}, {"features": features}

    def after_update(self, model, outputs):
        rows = jnp.concatenate([outputs["features"], model.other.rows[...]])
        model.other.rows[...] = rows[:WIDTH]
        model.other.seen[...] = model.other.seen[...] + len(outputs["features"])


TASKS = {"players": Players, "teacher": Following, "queue": Queued}


def config_of(**parallel):
    """Eight steps; the critic learns faster."""
    config = toy_config(total_steps=8, run={"log_every": 1, "checkpoint_every": 3})
    config.parallel.fsdp = parallel.pop("fsdp", 1)
    config.parallel.step.update(parallel)
    config.optimizers = {"critic": {**config.optimizer, "lr": 0.3}}
    return config


def main(workdir, *names, kill_at=-1):
    """Runs of these tasks, one after the other; killed before a step if it is told one."""
    distributed.start(timeout=60)
    for name in names:
        config = config_of()
        config.task.kill_at = int(kill_at)
        alone = jax.process_count() == 1
        devices = jax.devices()[:1] if alone else None
        loop.fit(TASKS[name](config), config, f"{workdir}/{name}", devices=devices)
