"""Small frozen trunks, heads and training for the tests of SPM."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import vadapt
from tests.backbones.drawn import drawn
from tests.compiled import run
from vadapt.adapters import spm
from vadapt.backbones.convnext import ConvNeXt
from vadapt.backbones.resnet import ResNet
from vadapt.backbones.sam import SAMEncoder
from vadapt.backbones.vit import ViT
from vadapt.losses.segmentation import cross_entropy
from vadapt.nn.resize import resize_bilinear
from vadapt.partition import Adapter, Head, mark, merge, variables
from vadapt.weights.load import with_arrays

CLASSES = 3
SMALL = {"num_classes": CLASSES, "hidden": 6, "steps": 2, "num_stages": 2}
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

TRUNKS = {
    "vit": lambda: ViT(
        width=8,
        depth=3,
        num_heads=2,
        patch_size=8,
        image_size=32,
        num_registers=2,
        rngs=nnx.Rngs(0),
    ),
    "sam": lambda: SAMEncoder(
        width=8,
        depth=2,
        num_heads=2,
        patch_size=8,
        image_size=32,
        window=2,
        global_blocks=[1],
        neck=None,
        rngs=nnx.Rngs(0),
    ),
    "resnet": lambda: ResNet(18, base_width=4, stem_width=6, rngs=nnx.Rngs(0)),
    "convnext": lambda: ConvNeXt(
        depths=(1, 2, 1), widths=(4, 5, 6), normed=(0, 1, 2), rngs=nnx.Rngs(0)
    ),
}
TAPS = {"vit": (1, 2), "sam": (0, 1), "resnet": (0, 1, 2, 3), "convnext": (0, 1, 2)}


@functools.cache
def all_trunks():
    return {name: drawn(create) for name, create in TRUNKS.items()}


@functools.cache
def some_images():
    return jax.random.normal(jax.random.key(1), (2, 32, 48, 3))


def call(model, images):
    return model(images)


def with_logits(model, images):
    return model.with_logits(images)


def matched(model, images, **options):
    """The maps that a head takes, and what matchers predicted on the way."""
    staged = hasattr(model, "stages")
    taps = range(model.depth) if staged else spm.stage_ends(model.depth, SMALL["num_stages"])
    features = model.extract(images, tuple(taps), as_grid=True, **options)
    return features.maps, features.outputs["class_maps"]


def unnormed(model, images):
    return matched(model, images, norm=False)[0]


def seen(trunk, images, name):
    """The plain model's maps at the ends of its stages."""
    return run("features", trunk, images, layers=TAPS[name], as_grid=True)


def randomised(model, scale=0.3):
    """The model with random numbers in its adapter, larger than those it starts from."""
    rng = np.random.default_rng(0)
    values = {
        path: jnp.asarray(rng.normal(size=value.shape, scale=scale), jnp.float32)
        for path, value in variables(model).items()
        if isinstance(value, Adapter)
    }
    return with_arrays(model, values)


def matcher(width=5, classes=CLASSES, hidden=6, **options):
    """A matcher with random weights."""
    rngs = nnx.Rngs(0)
    return randomised(
        spm.Matcher(width, spm.Semantics(hidden, classes, rngs=rngs), **options, rngs=rngs)
    )


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


class LinearHead(nnx.Module):
    """One linear layer on all maps, at the size of the finest."""

    def __init__(self, widths, num_classes, *, rngs):
        self.classify = mark(nnx.Linear(sum(widths), num_classes, rngs=rngs), Head)

    def __call__(self, maps):
        sized = [resize_bilinear(x, maps[0].shape[1:3]) for x in maps]
        return self.classify(jnp.concatenate(sized, axis=-1))


class Segmenter(nnx.Module):
    """A backbone under a linear head."""

    def __init__(self, backbone, widths, num_classes, seed=0):
        self.backbone = backbone
        self.head = LinearHead(widths, num_classes, rngs=nnx.Rngs(seed))

    def __call__(self, images):
        return self.with_logits(images)[0]

    def with_logits(self, images):
        """The head's logits, and those of the matchers."""
        taps = range(len(self.backbone.stages))
        features = self.backbone.extract(images, taps, as_grid=True)
        return self.head(features.maps), features.outputs.get("class_maps", ())


# In one piece: leaf by leaf, it would be most of the program of a step.
OPTIMIZER = optax.flatten(optax.adam(1e-2))


@functools.partial(jax.jit, static_argnums=0)
def step(graph, trainable, frozen, statistics, state, images, labels):
    """One step on the sum of both losses."""

    def loss(trainable):
        scores, logits = merge(graph, trainable, frozen, statistics).with_logits(images)
        semantic = spm.semantic_loss(logits, labels)
        scores = resize_bilinear(scores, labels.shape[1:])
        return cross_entropy(scores, labels) + 0.4 * semantic

    updates, state = OPTIMIZER.update(jax.grad(loss)(trainable), state)
    return optax.apply_updates(trainable, updates), state


def trained(parts, batches, *, steps):
    """The trainable tree after some steps."""
    trainable, state = parts.trainable, OPTIMIZER.init(parts.trainable)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes int32 counts with floats
        for i in range(steps):
            batch = batches[i % len(batches)]
            trainable, state = step(
                parts.graph, trainable, parts.frozen, parts.state, state, *batch
            )
    return trainable


@functools.cache
def two_tasks():
    """Two tasks' models on one trunk."""
    models = []
    for seed in range(2):
        trunk = vadapt.adapt(all_trunks()["resnet"], "spm", **SMALL)
        model = Segmenter(trunk, trunk.widths, CLASSES, seed=seed)
        models.append(randomised(model, scale=0.3 + 0.2 * seed))
    return models
