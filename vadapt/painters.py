"""What plans of a backbone cost and keep: features under a plan, scores, latency, likeness.

Source: Transformer Layers as Painters, arXiv:2407.09298; the protocols for images are ours.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from vadapt.data import pipeline
from vadapt.data.named_sources import EMBEDDED
from vadapt.data.transforms import Resize
from vadapt.errors import ConfigError
from vadapt.metrics.knn import knn_accuracy
from vadapt.metrics.layers import average, layer_similarity
from vadapt.metrics.linear_probe import Probe, fit_probe, patch_labels, probe_scores
from vadapt.nn import plans
from vadapt.nn.hooks import hooks_of
from vadapt.nn.plans import Parallel, Plan
from vadapt.tasks.inputs import normalise

BATCH = 64
_PATCHES = 8  # of an image, that the dense probe is fitted and tested on
_SEED = 900_001  # of embedded scenes that no recipe trains on


class Side(NamedTuple):
    """Images of a task to fit on, or to test on, and their labels."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, "n *places"]  # one an image, or one a chosen patch
    places: Int[np.ndarray, "n p"] | None  # raster numbers of these patches


class Examples(NamedTuple):
    """The examples of a task: "labels", one an image, or "dense", one a patch."""

    train: Side
    test: Side
    num_classes: int


def read_examples(
    config: Any, patch_size: int, numbers: tuple[int, int], seed: int
) -> dict[str, Examples]:
    """The tasks that the data of a recipe are good for, by name.

    Of embedded scenes both; of others what `config.data` and the first set of `config.test` hold.

    Args:
        numbers: of images to fit on and to test on.
        seed: of which scenes, or of which of the images.

    Raises:
        ConfigError: images with neither labels nor masks.
    """
    found, refused = {}, {}
    for name, field in (("labels", "labels"), ("dense", "mask")):
        try:
            sources = _sources(config, field, numbers, seed)
        except ConfigError as error:
            refused[name] = error
            continue
        sides = [
            _read(source, field, number, tuple(config.data.image_size), patch_size, seed)
            for source, number in zip(sources, numbers, strict=True)
        ]
        number = len(sources[0].classes) if field == "labels" else _largest(sides) + 1
        found[name] = Examples(sides[0], sides[1], number)
    if not found:
        raise ConfigError(
            f"config.data.source={config.data.source!r} gives neither labels ({refused['labels']}) "
            f"nor masks ({refused['dense']}) to compare plans by; give data that have some, such "
            "as --config=linear_dinov2:scenes"
        )
    return found


def _largest(sides: list[Side]) -> int:
    return int(max(side.labels[side.labels < 255].max(initial=0) for side in sides))


def _sources(config: Any, field: str, numbers: tuple[int, int], seed: int) -> list[Any]:
    reads = ("image", field)
    if config.data.source not in EMBEDDED:
        sets = [*pipeline.evaluation_sets(config, "test").values()]
        if not sets:
            raise ConfigError("config.test names no set to test on")
        return [pipeline.training_source(config, reads), pipeline.make_source(sets[0], reads)]
    name = "scene_objects" if field == "labels" else "scenes"
    sources = []
    for side, number in enumerate(numbers):
        data = config.data.copy_and_resolve_references()
        with data.unlocked():
            data.update({"source": name, "num_scenes": number})
            data.scene_seed = _SEED + 2 * seed + side
        sources.append(pipeline.make_source(data, reads))
    return sources


def _read(
    source: Any, field: str, number: int, size: tuple[int, int], patch_size: int, seed: int
) -> Side:
    rng, resize = np.random.default_rng(seed), Resize(size)
    chosen = np.arange(number)
    if len(source) > number:
        chosen = np.sort(rng.permutation(len(source))[:number])
    records = [resize(source[int(i)], rng) for i in chosen[: len(source)]]
    images = np.stack([record["image"] for record in records])
    if field == "labels":
        rows = np.stack([record["labels"] for record in records]) > 0
        alone = rows.sum(1) == 1
        return Side(images[alone], rows[alone].argmax(1), None)
    masks = np.stack([record["mask"] for record in records]).astype(np.int32)
    known = int(masks[masks < 255].max(initial=0)) + 1
    labels = patch_labels(masks, patch_size, known).reshape(len(masks), -1)
    count = min(_PATCHES, labels.shape[1])
    places = np.stack([rng.permutation(labels.shape[1])[:count] for _ in masks])
    return Side(images, np.take_along_axis(labels, places, 1), places)


# Running a plan.


def arranged(backbone: Any, plan: Plan) -> Any:
    """The backbone as it runs in a plan; those of plans of one form have one compiled program.

    So the blocks that run stand in their order, unless something acts around them by number.
    """
    made = nnx.clone(backbone)
    if hooks_of(backbone):
        made.plan = tuple(plan)
        return made
    made.blocks = nnx.List([nnx.clone(backbone.blocks[i]) for i in plans.executed(plan)])
    steps: list[int | Parallel] = []
    place = 0
    for step in plan:
        size = len(step.blocks) if isinstance(step, Parallel) else 1
        numbers = tuple(range(place, place + size))
        steps.append(step._replace(blocks=numbers) if isinstance(step, Parallel) else place)
        place += size
    made.plan = tuple(steps) if any(isinstance(step, Parallel) for step in steps) else None
    return made


@functools.partial(jax.jit, static_argnums=0)
def _forward(graph: Any, tree: Any, pixels: Float[Array, "b h w c"]) -> Any:
    """What leaves a backbone after its last step: maps of patches [b, n, d]."""
    backbone = nnx.merge(graph, tree)
    x = backbone.run(pixels).x.without_prompts()
    return x.with_array(backbone.leave(x.array, backbone.depth - 1)).patches


def _program(backbone: Any) -> Callable[[Array], Array]:
    graph, state = nnx.split(backbone)
    return functools.partial(_forward, graph, nnx.to_pure_dict(state))


class Seen(NamedTuple):
    """Features of a task's images under a plan: of whole images, or of the chosen patches."""

    train: Float[np.ndarray, "n *places d"]
    test: Float[np.ndarray, "m *places d"]


def see(backbone: Any, plan: Plan, examples: Mapping[str, Examples], data: Any) -> dict[str, Seen]:
    """Features under a plan: the mean of an image's patches for labels, single ones for dense.

    Args:
        data: `mean` and `std` of the pixels.
    """
    run = _program(arranged(backbone, plan))
    return {
        name: Seen(_see_side(run, task.train, data), _see_side(run, task.test, data))
        for name, task in examples.items()
    }


def _see_side(run: Callable[[Array], Array], side: Side, data: Any) -> Any:
    found = []
    for start in range(0, len(side.images), BATCH):
        images = side.images[start : start + BATCH]
        # One shape is compiled.
        padded = np.resize(images, (BATCH, *images.shape[1:]))
        maps = np.asarray(run(normalise(jnp.asarray(padded), data.mean, data.std)), np.float32)
        maps = maps[: len(images)]
        if side.places is None:
            found.append(maps.mean(1))
        else:
            places = side.places[start : start + BATCH, :, None]
            found.append(np.take_along_axis(maps, places, 1))
    return np.concatenate(found)


# Scores.

Scores = dict[str, float]


def fit_heads(seen: Mapping[str, Seen], examples: Mapping[str, Examples]) -> dict[str, Probe]:
    """A linear probe for each task."""
    return {
        name: fit_probe(_rows(seen[name].train), task.train.labels.reshape(-1),
                        num_classes=task.num_classes)
        for name, task in examples.items()
    }  # fmt: skip


def score(
    fitted: Mapping[str, Seen],
    heads: Mapping[str, Probe],
    seen: Mapping[str, Seen],
    examples: Mapping[str, Examples],
) -> Scores:
    """Scores in [0, 1]: "knn" and "labels" top-1, "dense" mean IoU of patches.

    Args:
        fitted: features that neighbors are among; those that the heads were fitted on.
        seen: features to test.
    """
    found = {}
    for name, task in examples.items():
        confusion = heads[name].confusion(_rows(seen[name].test), task.test.labels.reshape(-1))
        if name == "labels":
            found["knn"] = knn_accuracy(
                fitted[name].train, task.train.labels, seen[name].test, task.test.labels,
                num_classes=task.num_classes,
            )  # fmt: skip
        kind = "accuracy" if name == "labels" else "miou"
        found[name] = probe_scores(confusion)[kind]
    return found


def chance(examples: Mapping[str, Examples]) -> Scores:
    """The scores of answering always what the training set has most."""
    found = {}
    for name, task in examples.items():
        known = task.train.labels[task.train.labels < task.num_classes]
        most = np.bincount(known.reshape(-1)).argmax()
        truth = task.test.labels[task.test.labels < task.num_classes]
        share = float((truth == most).mean())
        # The IoU of the one class is its share, that of all others is zero.
        there = len(np.union1d(truth, most))
        found |= {"knn": share, "labels": share} if name == "labels" else {name: share / there}
    return found


def _rows(features: Float[np.ndarray, "n *places d"]) -> Float[np.ndarray, "r d"]:
    return features.reshape(-1, features.shape[-1])


# Latency and likeness.


def latencies(
    backbone: Any, several: Sequence[Plan], image_size: tuple[int, int], batch: int, times: int
) -> list[float]:
    """The median of some passes of each plan in milliseconds, after one that compiles.

    Plans take turns, so that what else a machine does falls on all alike.
    """
    runs = [_program(arranged(backbone, plan)) for plan in several]
    pixels = jnp.zeros((batch, *image_size, backbone.in_channels), jnp.float32)
    for run in runs:
        jax.block_until_ready(run(pixels))
    seconds = np.zeros((times, len(runs)))
    for row in seconds:
        for number, run in enumerate(runs):
            began = time.perf_counter()
            jax.block_until_ready(run(pixels))
            row[number] = time.perf_counter() - began
    return [1e3 * float(each) for each in np.median(seconds, axis=0)]


def form(plan: Plan) -> tuple[Any, ...]:
    """What the work of a plan depends on: how many blocks run in a row, and which groups."""
    parts: list[Any] = []
    for step in plan:
        if isinstance(step, Parallel):
            parts.append((len(step.blocks), step.loops, step.scale is None))
        elif parts and isinstance(parts[-1], int):
            parts[-1] += 1
        else:
            parts.append(1)
    return tuple(parts)


def likeness(
    backbone: Any, images: UInt8[np.ndarray, "n h w c"], data: Any, batch: int = 32
) -> dict[str, Float[np.ndarray, "t t"]]:
    """How alike the states before and after blocks are: "flattened", and "tokens" without means.

    Source: see `metrics.layers`.
    """
    graph, state = nnx.split(backbone)
    tree = nnx.to_pure_dict(state)
    chunks = [images[i : i + batch] for i in range(0, len(images) - batch + 1, batch)] or [images]
    pixels = [normalise(jnp.asarray(chunk), data.mean, data.std) for chunk in chunks]
    means = np.mean([np.asarray(_states(graph, tree, x)[1].mean((1, 2))) for x in pixels], axis=0)
    pairs = [_likeness(graph, tree, x, jnp.asarray(means)) for x in pixels]
    return {
        "flattened": average(flat for flat, _ in pairs),
        "tokens": average(tokens for _, tokens in pairs),
    }


@functools.partial(jax.jit, static_argnums=0)
def _states(graph: Any, tree: Any, pixels: Float[Array, "b h w c"]) -> tuple[Array, Array]:
    """States [t, b, n, d] of all tokens, and of patches alone."""
    backbone = nnx.merge(graph, tree)
    taps = range(backbone.depth)
    seen = backbone.run(pixels, taps).seen
    backbone.plan = ()  # no block: what enters the first
    passed = [backbone.run(pixels).x, *(seen[number] for number in taps)]
    passed = [x.without_prompts() for x in passed]
    return jnp.stack([x.tokens for x in passed]), jnp.stack([x.patches for x in passed])


@functools.partial(jax.jit, static_argnums=0)
def _likeness(graph: Any, tree: Any, pixels: Array, means: Array) -> tuple[Array, Array]:
    states, patches = _states(graph, tree, pixels)
    return layer_similarity(states), layer_similarity(patches, means)
