"""What a run has trained, ready to use: without its data, and wherever it lies."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from vadapt import adapters, models, sharding, system
from vadapt.data.given import read_images
from vadapt.data.transforms import Resize
from vadapt.errors import ConfigError, DataError, WeightsError
from vadapt.exporting import export_answers
from vadapt.found_run import FoundRun, candidates_of, find_run, places, with_value
from vadapt.nn.resize import resize_bilinear
from vadapt.partition import Adapter, Prompt, merge, split, variables
from vadapt.quantization import INT8
from vadapt.tasks import TASKS, make_task
from vadapt.tasks.inputs import normalise
from vadapt.training.loop import open_checkpoints
from vadapt.training.program import make_program
from vadapt.training.task import Prediction, Predicts, Task
from vadapt.weights.adapter_file import AdapterInfo, load_adapter
from vadapt.weights.base import BACKBONE
from vadapt.weights.files import read_arrays
from vadapt.weights.patterns import ends_soon, texts
from vadapt.weights.rounding import round_frozen
from vadapt.weights.sources import arrays_of

_SLACK = 2**24  # numbers that a model may have more than its files


@dataclass(frozen=True)
class LoadedRun:
    """A model that a run has trained, and how it sees images; `load_run` makes it."""

    task: Task[nnx.Module]
    model: nnx.Module  # of a task that does not predict, what its run leaves: the backbone
    name: str  # where it was found
    step: int | None = None  # of the checkpoint; None for a finished run

    def __repr__(self) -> str:  # that of a model alone has thousands of lines
        config, at = self.config, "" if self.step is None else f" at step {self.step}"
        classes = f", {len(self.classes)} classes" if self.classes else ""
        what = f"{config.task.name} with {config.model.backbone}{classes}"
        return f"LoadedRun({self.name!r}{at}: {what})"

    @property
    def config(self) -> Any:
        """The settings of the run that matter to what it trained."""
        return self.task.config

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the head's outputs; empty if the task has none."""
        return tuple(getattr(self.task, "classes", ()))

    def predict(self, images: Any) -> Prediction | list[Prediction]:
        """What the model says of an image; of several, a list.

        Segmentation gives `arrays["labels"]` (uint8 [h, w], at the image's size) and
        `confidences`; recognition gives `labels`, probabilities by name.

        Args:
            images: as for `vadapt.preprocess`; of any sizes.

        Raises:
            DataError: no images.
            ConfigError: the task does not predict.
        """
        task = predicting(self.task, self.name)
        given, alone = read_images(images)
        found = [task.predict_image(self.model, image) for image in given]
        return found[0] if alone else found

    def features(self, images: Any, layers: int | Sequence[int] | None = None) -> Any:
        """Maps of the adapted backbone, float32 [h, w, d], of an image; of several, a list.

        The image is seen as in testing; where testing looks through windows, whole.

        Args:
            images: as for `vadapt.preprocess`; of any sizes.
            layers: as for a backbone's `features`: one number gives a map, several a tuple. By
                default what the head gets (a tuple), or the last layer.
        """
        given, alone = read_images(images)
        wanted = layers if layers is None or isinstance(layers, int) else tuple(layers)
        found = []
        for image in given:
            graph, state = nnx.split(self.model)
            maps = _features(graph, nnx.to_pure_dict(state), self._pixels(image)[None], wanted)
            found.append(jax.tree.map(lambda x: np.asarray(x[0], np.float32), maps))
        return found[0] if alone else found

    def preprocess(self, images: Any) -> Float[Array, "b h w 3"]:
        """Images as the model sees them; see `vadapt.preprocess`."""
        return _stacked([self._pixels(image) for image in read_images(images)[0]])

    def export(
        self,
        path: str | Path,
        *,
        input_size: int | Sequence[int] | None = None,
        outputs: Sequence[str] = (),
        dtype: str | None = None,
    ) -> Path:
        """Writes what `predict` does, from pixels to answers, to one file that any JAX runs.

        The file takes images of one size, uint8 [b, h, w, 3], of any batch size. Segmentation gives
        `labels` (int32 [b, h, w], at the images' size; 255 for none) and `probabilities`
        [b, h, w, k] if asked for, recognition `probabilities` [b, k]. It names the classes:
        `vadapt.load_exported`.

        Args:
            input_size: (height, width) of the images; by default that of training.
            outputs: some of what the task gives; by default the first.
            dtype: as for `vadapt.export_features`.

        Raises:
            ConfigError: the task does not predict in one program, or gives no such output.
            WeightsError: see `vadapt.export_features`.
        """
        given = {"input_size": input_size, "outputs": outputs, "dtype": dtype}
        return export_answers(self.task, self.model, path, **given, name=self.name)

    def _pixels(self, image: UInt8[np.ndarray, "h w c"]) -> Float[Array, "_h _w 3"]:
        data = self.config.data
        seen = getattr(self.task, "prepare_image", self._resized)(image)
        pixels = normalise(jnp.asarray(seen)[None], data.mean, data.std)
        multiple = getattr(getattr(self.model, "backbone", self.model), "patch_size", 1)
        sides = [max(round(side / multiple), 1) * multiple for side in pixels.shape[1:3]]
        return resize_bilinear(pixels, sides)[0]

    def _resized(self, image: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "_h _w c"]:
        size = tuple(self.config.data.image_size)
        return Resize(size)({"image": image}, np.random.default_rng(0))["image"]


def predicting(task: Task[nnx.Module], name: str) -> Predicts[nnx.Module]:
    """The task of a run, which predicts.

    Raises:
        ConfigError: it does not; names those that do.
    """
    if isinstance(task, Predicts):
        return task
    able = ", ".join(name for name in TASKS if hasattr(TASKS[name], "predict_image"))
    raise ConfigError(
        f"{name!r} holds a run of the task {task.config.task.name!r}, which has no "
        f"`predict_image`: it does not say what it sees in an image. Tasks that do: {able}"
    )


def load_run(run: str | Path, *, weights: str | Path = "", to_predict: bool = False) -> LoadedRun:
    """What a run has trained, to predict with and to take features from; no data are needed.

    Args:
        run: a workdir, of a finished run or of one with a checkpoint (the newest counts); the
            adapter file of a finished run, alone or anywhere; or one on the Hub, "hf:org/name".
        weights: the pretrained weights that it was trained on, as for `load_weights`, or a folder
            with them among others. By default they are looked for where the run had them, under
            the same name beside the run and in the folders above; the hash in the adapter file
            says whether they are those.
        to_predict: refuse a run of a task that does not predict, before its model is built.

    Raises:
        ConfigError: there is no such run, or see `to_predict`.
        WeightsError: its base weights are not found, or it does not fit them.
    """
    held = find_run(run)
    config, folders = held.config, held.folders
    if to_predict:
        predicting(make_task(config), held.name)
    for section, name in (("model", "adapter"), ("task", "teacher_weights"), ("data", "path")):
        if value := config[section].get(name, ""):
            found = next(iter(places(value, folders)), value)
            config = with_value(config, section, name, found)
    if held.info is None:
        found = next(iter(candidates_of(config.model.weights, weights, folders)), None)
        return _from_checkpoint(held, with_value(config, "model", "weights", found or weights))
    return _from_adapter(held, held.info, config, str(weights))


def preprocess(
    images: Any, model: Any, *, statistics: Any = None, image_size: Any = None
) -> Float[Array, "b h w 3"]:
    """Images as a model sees them: resized, scaled to 0-1, less the mean, over the deviation.

    Args:
        images: an array (uint8, or floats in 0-1; [h, w, c] or [n, h, w, c], RGB; OpenCV's BGR is
            turned by `image[..., ::-1]`), an image of Pillow's, a path, or a list of these.
        model: one of `vadapt.create`, also adapted or under a head, which says its statistics and
            its size; or what `vadapt.load_run` gives, which sees images as its run tested them.
        statistics: mean and standard deviation of the pixels, in 0-1; by default the model's own.
        image_size: a side, or (height, width); by default the model's own, and the image's where a
            model takes any.

    Raises:
        DataError: no images, or of several sizes that the model sees as they are.
        ConfigError: a model that does not say its statistics.

    >>> model = models.create("vit_micro", image_size=(64, 96))
    >>> preprocess(np.zeros((120, 160, 3), np.uint8), model).shape
    (1, 64, 96, 3)
    """
    if isinstance(model, LoadedRun):
        if statistics is not None or image_size is not None:
            raise ConfigError("a run says itself how it sees images: leave the options out")
        return model.preprocess(images)
    backbone = getattr(model, "backbone", model)
    statistics = getattr(backbone, "statistics", None) if statistics is None else statistics
    if statistics is None:
        raise ConfigError(
            f"this {type(backbone).__name__} does not say which pixels it was trained on, as those "
            "of vadapt.create do; give statistics=(mean, std), such as "
            "vadapt.models.statistics('dinov2_small')"
        )
    if image_size is None and hasattr(backbone, "grid"):
        image_size = [side * backbone.patch_size for side in backbone.grid]
    seen = read_images(images)[0]
    if image_size is not None:
        sides = np.broadcast_to(np.asarray(image_size), 2).tolist()
        resize = Resize((sides[0], sides[1]))
        seen = [resize({"image": x}, np.random.default_rng(0))["image"] for x in seen]
    return _stacked([normalise(jnp.asarray(image)[None], *statistics)[0] for image in seen])


def _stacked(pixels: Sequence[Float[Array, "_h _w 3"]]) -> Float[Array, "b h w 3"]:
    sizes = sorted({image.shape[:2] for image in pixels})
    if len(sizes) != 1:
        raise DataError(
            f"{len(pixels)} images of sizes {sizes[:4]}, which the model sees as they are; give "
            "images of one size, or one at a time"
            if sizes
            else "no images: the list is empty"
        )
    return jnp.stack(pixels)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _features(graph: Any, tree: Any, pixels: Array, layers: Any) -> Any:
    model = nnx.merge(graph, tree)
    if layers is None and isinstance(model, system.System):
        return model.features(pixels).maps
    backbone = getattr(model, "backbone", model)
    return backbone.features(pixels, -1 if layers is None else layers, as_grid=True)


def _task(held: FoundRun, config: Any) -> Task[nnx.Module]:
    task: Any = make_task(config)
    if held.known:
        task.known = held.known
    return task


def _from_adapter(held: FoundRun, info: AdapterInfo, config: Any, given: str) -> LoadedRun:
    """The model of an adapter file, with the first base weights that have its hash."""
    if config.model.get("adapter", "") and _holds_methods(held, info, config):
        config = with_value(config, "model", "adapter", "")
    candidates = list(dict.fromkeys(candidates_of(config.model.weights, given, held.folders)))
    failures = {}
    # A pattern that might never end is not tried, see `load_adapter`.
    trainable = config.get("trainable")
    trainable = trainable if all(map(ends_soon, texts(trainable))) else None
    shapes = adapters.abstract(info, lambda: _build(_task(held, config), pretrained=False))
    # Nothing is needed of a base that was trained whole: its hash is that of any other.
    for source in [*candidates, *([""] if info.base_kind and "" not in candidates else [])]:
        changed = with_value(config, "model", "weights", source)
        task = _task(held, changed)
        try:
            _check_size(info, shapes, source)
            model = _build(task)
            load_adapter(model, info.path, trainable=trainable)
            return LoadedRun(task, model, held.name)
        except WeightsError as error:
            failures[source] = error
    if len(candidates) == 1:
        raise failures[candidates[0]]
    tried = "".join(f"\n  {source}: {failures[source]}" for source in candidates)
    raise WeightsError(
        f"the base weights of {held.name!r}, which it calls {given or config.model.weights!r}, of "
        f"hash {info.base}, are {'none of these:' + tried if tried else 'not found'}\nGive their "
        "place: weights=FILE, or --weights=FILE, or a folder with them"
    )


def _holds_methods(held: FoundRun, info: AdapterInfo, config: Any) -> bool:
    """Whether a file has all of what the methods add, so that no adapter before it is needed."""
    task = _task(held, with_value(config, "model", "adapter", ""))
    model = nnx.eval_shape(lambda: task.build(pretrained=False))
    added = {path for path, v in variables(model).items() if isinstance(v, Adapter | Prompt)}
    names = {*read_arrays(info.path)}
    return bool(added) and all({path, path.removeprefix(BACKBONE)} & names for path in added)


def _check_size(info: AdapterInfo, shapes: nnx.Module, source: str) -> None:
    """Refuse to build what is far larger than an adapter file and its base together.

    Heads and position tables are of other sizes than files say, so that shapes are compared later.
    """
    wanted = sum(math.prod(variable.shape) for variable in variables(shapes).values())
    held = [read_arrays(info.path), arrays_of(source) if source else {}]
    numbers = sum(math.prod(array.shape) for arrays in held for array in arrays.values())
    if wanted > 2 * numbers + _SLACK:
        raise WeightsError(
            f"{str(info.path)!r} has a header that asks for a model of {wanted:,} numbers; it and "
            f"its base weights {source!r} hold {numbers:,}"
        )


def _build(task: Task[nnx.Module], *, pretrained: bool = True) -> nnx.Module:
    """The model of a task that predicts; of another one the backbone, which is what it leaves."""
    if isinstance(task, Predicts):
        return task.build(pretrained=pretrained)
    config = task.config.copy_and_resolve_references()
    with config.unlocked():
        allowed = config.model.get("allow_unexpected", ())
        config.model.allow_unexpected = (*allowed, *models.BESIDE)
    return system.build(config, options=task.backbone_options, pretrained=pretrained)


def _from_checkpoint(held: FoundRun, config: Any) -> LoadedRun:
    """The model of the newest checkpoint; its moving average, if there is one."""
    task = _task(held, config)
    model = task.build()
    parts = split(model, config.trainable)
    if config.parallel.frozen_dtype == INT8:
        round_frozen(model, parts.frozen)
        parts = split(model, config.trainable)
    mesh = sharding.make_mesh(1, jax.local_devices()[:1])
    program = make_program(parts, task, config, mesh)
    checkpoints = open_checkpoints(config, held.workdir)
    state = checkpoints.restore({"state": program.state, "position": 0})["state"]
    trained = state.trainable if state.ema is None else state.ema
    model = merge(parts.graph, trained, parts.frozen, state.variables)
    kept = model if isinstance(task, Predicts) else task.export(model)
    return LoadedRun(task, kept, held.name, checkpoints.restored)
