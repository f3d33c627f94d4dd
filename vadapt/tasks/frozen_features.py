"""Features of a frozen backbone, of images that no augmentation touches, cached on disk."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

import vadapt
from vadapt import sharding
from vadapt.data import pipeline
from vadapt.data.pipeline import Feed
from vadapt.data.stream import Stream, batches
from vadapt.errors import ConfigError
from vadapt.partition import flatten, split, variables
from vadapt.quantization import in_use, store
from vadapt.tasks import labelled
from vadapt.tasks.feature_cache import FeatureCache, Shapes, is_complete, open_or_fill

_NAME = "features_{}"


def training_stream(task: Any) -> Stream:
    """Batches in the order of `pipeline.training_stream`, of what the head gets for their images.

    Fields: "features_0", ... (one for each of `config.task.layers`, [b, h, w, d], in the compute
    type), "mask" (uint8 [b, h, w]) and "index" (int32 [b]: their elements in `task.source`). They
    are computed and stored first, in `config.data.cache`, where they are not there yet.

    Args:
        task: a segmentation, whose model has `features(images)`.

    Raises:
        ConfigError: a setting makes features differ from step to step; or see `open_or_fill`.
    """
    config, cache = task.config, open_cache(task)
    return pipeline.training_stream(config, Feed([], cache.fields), cache, max_corrupt=0)


def open_cache(task: Any) -> FeatureCache:
    """The features of all elements of `task.source`, computed where they are not stored yet."""
    config, source = task.config, task.source
    folder = Path(config.data.cache).expanduser()
    _refuse_randomness(config)
    if jax.process_count() > 1 and not is_complete(folder):
        raise ConfigError(
            f"config.data.cache: {str(folder)!r} is not filled, which is the work of one process: "
            "start the same command as one process first, stop it once it trains, and put the "
            "folder where every process finds it"
        )
    model = task.build()
    _refuse_training(model, config)
    made_from = fingerprint(model, config, source)

    def compute(first: int) -> Iterator[dict[str, np.ndarray]]:
        return _compute(model, config, source, first)

    cache = open_or_fill(folder, made_from, _shapes(model, config), len(source), compute)
    cache.source = source
    return cache


def maps(batch: Mapping[str, Any]) -> tuple[Any, ...]:
    """The features of a batch of `training_stream`, each [b, h, w, d]."""
    number = sum(name.startswith(_NAME.format("")) for name in batch)
    return tuple(batch[_NAME.format(i)] for i in range(number))


def batch_shapes(task: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a whole batch of `training_stream`, without reading any data."""
    model = nnx.eval_shape(lambda: task.build(pretrained=False))
    fields = {**_shapes(model, task.config), "index": jax.ShapeDtypeStruct((), jnp.int32)}
    number = task.config.batch_size
    return {
        name: jax.ShapeDtypeStruct((number, *field.shape), field.dtype)
        for name, field in fields.items()
    }


def fingerprint(model: Any, config: Any, source: Any) -> dict[str, Any]:
    """All that features depend on; a source says by `fingerprint()` what its elements are."""
    if not hasattr(source, "fingerprint"):
        raise ConfigError(
            f"config.data.cache: a {type(source).__name__} does not say what its elements are; "
            "leave config.data.cache out"
        )
    digest = hashlib.sha256()
    for path, variable in variables(model.backbone).items():
        array = np.ascontiguousarray(variable[...])
        digest.update(f"{path} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    data, parallel = config.data, config.parallel
    plan = config.model.get("plan", "")
    return {
        **({"model.plan": plan} if plan else {}),
        "vadapt": vadapt.__version__,
        "model.backbone": config.model.backbone,
        "model.options": config.model.options.to_dict(),
        "weights": digest.hexdigest()[:16],
        "task.layers": list(config.task.layers),
        "task.norm": config.task.norm,
        "data.image_size": list(data.image_size),
        "data.mean, std": [np.broadcast_to(x, 3).tolist() for x in (data.mean, data.std)],
        "parallel.frozen_dtype": parallel.frozen_dtype,
        "parallel.step.compute_dtype": parallel.step.compute_dtype,
        "images": len(source),
        "data": source.fingerprint(),
    }


def _refuse_randomness(config: Any) -> None:
    options = config.model.options
    drops = [name for name, value in options.items() if name.startswith("drop") and value]
    stands = {
        "config.data.augment=True: images differ from epoch to epoch (False resizes whole images "
        "to config.data.image_size)": config.data.get("augment", True),
        f"config.method.name={config.method.name!r}: what a method adds to the backbone is there "
        "to train": config.method.name != "none",
        **{
            f"config.model.options.{name}={options[name]}: it acts at random": True
            for name in drops
        },
    }
    found = [reason for reason, is_there in stands.items() if is_there]
    if found:
        raise ConfigError(
            "config.data.cache keeps what a frozen backbone makes of unchanging images; in its way "
            "stands " + "; ".join(found)
        )


def _refuse_training(model: Any, config: Any) -> None:
    trained = [
        path
        for path in flatten(split(model, config.trainable).trainable)
        if path.startswith("backbone/")
    ]
    if trained:
        raise ConfigError(
            "config.data.cache keeps what a frozen backbone makes of images; in its way stands "
            f"config.trainable={config.trainable!r}: it trains {len(trained)} arrays of the "
            f"backbone, {trained[0]!r} among them"
        )


def _features(model: Any, config: Any) -> tuple[Any, Any]:
    """A function of (weights, images, sizes) to maps in the types of a step; and the weights."""
    graph, weights, rest = nnx.split(model, nnx.Param, ...)

    def features(trees: Any, images: Array, sizes: Array) -> Any:
        weights, rest = trees
        weights = in_use(weights, jnp.dtype(config.parallel.step.compute_dtype))
        pixels = labelled.normalise(config.data, images, sizes)
        return nnx.merge(graph, weights, rest).features(pixels).maps

    return features, (nnx.to_pure_dict(weights), nnx.to_pure_dict(rest))


def _stored(trees: Any, config: Any) -> Any:
    """Weights as a run holds them on its devices."""
    weights, rest = trees
    return store(weights, config.parallel.frozen_dtype), rest


def _shapes(model: Any, config: Any) -> Shapes:
    features, trees = _features(model, config)
    trees = jax.eval_shape(functools.partial(_stored, config=config), trees)
    batch = pipeline.batch_shapes(config, labelled.training_feed(config.data).fields)
    found = jax.eval_shape(features, trees, batch["image"], batch["size"])
    rows = {_NAME.format(i): x for i, x in enumerate(found)} | {"mask": batch["mask"]}
    return {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in rows.items()}


def _compute(model: Any, config: Any, source: Any, first: int) -> Iterator[dict[str, np.ndarray]]:
    """Features and masks of the elements from number `first` on, by all devices."""
    mesh = sharding.make_mesh(1)
    size = -(-config.batch_size // mesh.size) * mesh.size
    features, trees = _features(model, config)
    compiled = jax.jit(features)
    trees = jax.device_put(_stored(trees, config), sharding.replicated(mesh))
    start = first // size

    def fetch(number: int, maps: Any, mask: np.ndarray) -> dict[str, np.ndarray]:
        rows = slice(max(first - number * size, 0), len(source) - number * size)
        fields = {_NAME.format(i): np.asarray(x)[rows] for i, x in enumerate(jax.device_get(maps))}
        return fields | {"mask": mask[rows]}

    waiting: tuple[Any, ...] = ()
    feed = labelled.training_feed(config.data)
    stream = batches(
        source,
        feed.transforms,
        size,
        max_corrupt=config.data.max_corrupt,
        fields=feed.fields,
        first=start,
    )
    for number, batch in enumerate(stream, start):
        placed = sharding.place_batch({name: batch[name] for name in ("image", "size")}, mesh)
        found = compiled(trees, placed["image"], placed["size"])
        if waiting:  # fetched while the devices are at work on the next
            yield fetch(*waiting)
        waiting = (number, found, batch["mask"])
    if waiting:
        yield fetch(*waiting)
