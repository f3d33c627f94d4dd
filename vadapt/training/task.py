"""The contract of a task: all that the trainer, `run`, `plan`, `predict` and export call."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Shaped, UInt8

from vadapt.data.stream import Stream
from vadapt.training.report import Report

Batch = Mapping[str, Array]
Model = TypeVar("Model", bound=nnx.Module)  # what a task builds, and is given again
Sees = TypeVar("Sees", bound=nnx.Module, contravariant=True)  # what it is given alone
# As `Task.loss`: (model, batch, key) to the loss, metrics, and outputs if there are any.
Loss = Callable[..., tuple[Any, ...]]


@runtime_checkable
class Task(Protocol[Model]):
    """What is learned, from which data, and how it is evaluated; see `vadapt.tasks`.

    A task may also have

    - `evaluates_initial`: False where scores before training say nothing;
    - `players` (see `Player`), `after_update` (see `Remembers`), `predict_image` (see `Predicts`),
      `respond` (see `Responds`);
    - `settings`: for sections of a config ("data", "task", "eval", "model") a dataclass of the
      fields that it reads there, by which typos are found;
    - `classes` and `palette`, which the training data say and predicting needs. They are kept with
      what was trained, and `vadapt.load_run` sets `known`, a mapping with them, before `build`: a
      task that looks there first is used without any data;
    - `prepare_image`, from an image as it was read (uint8 [h, w, c]) to one of the size at which
      the model sees it; without it, `vadapt.load_run` resizes to `config.data.image_size`;
    - `report` (see `Reports`).
    """

    config: Any

    @property
    def backbone_options(self) -> Mapping[str, Any]:
        """Options of the backbone besides its name and size, for the adapter file."""
        ...

    def build(self, *, pretrained: bool = True) -> Model:
        """The model with its weights and the method applied.

        Args:
            pretrained: False leaves every weight at random and reads no file.
        """
        ...

    def stream(self) -> Stream:
        """Training batches, this process's share, without an end; see `data.stream.make_stream`."""
        ...

    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a whole batch of `stream`, without reading any data."""
        ...

    def loss(self, model: Model, batch: Any, key: Array) -> tuple[Any, ...]:
        """The loss of a batch, a scalar in float32, and metrics by name.

        All randomness comes from the key. Averages over a part of the batch are taken with
        `vadapt.micro_batches.batch_average`. A third result, if there is one, are arrays by name
        with the batch's images first, for `after_update`.
        """
        ...

    def evaluate(self, model: Model, on: str = "test") -> dict[str, float]:
        """Scores by name.

        Args:
            on: "test", or "validation" while training.
        """
        ...

    def export(self, model: Model) -> nnx.Module:
        """The part of the model that people keep."""
        ...

    def pictures(self, model: Model, batch: Any) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """What people look at, by name, of the first images of a batch."""
        ...


class Remembers(Protocol[Sees]):
    """A task whose model remembers: a teacher that follows, a queue, templates, prototypes."""

    def after_update(self, model: Sees, outputs: Mapping[str, Array]) -> None:
        """Move what the model remembers, in place: variables of `Teacher` and `Queue`.

        It is called once a step, whatever the number of micro-batches, with the weights after the
        update, in float32. What the loss does to these variables is dropped; it sees them in the
        compute type.

        Args:
            outputs: what the loss returned as its third result, of the whole batch in its order.
        """
        ...


class FoundBox(NamedTuple):
    """An object that was found in an image."""

    label: str
    number: int  # of its class, from 0
    score: float  # 0-1
    corners: tuple[float, float, float, float]  # left, top, right, bottom, in the image's pixels


class Prediction(NamedTuple):
    """What a task says of one image; `vadapt.predict` makes files of it."""

    # By the name of their folder; written as PNG, to the bit.
    arrays: Mapping[str, UInt8[np.ndarray, "h w *c"]] = MappingProxyType({})
    # The same, to look at; written as JPEG.
    pictures: Mapping[str, UInt8[np.ndarray, "h w 3"]] = MappingProxyType({})
    # Probabilities of labels, in the order in which they are to be read; rows of a table.
    labels: Mapping[str, float] = MappingProxyType({})
    # By the name of their folder, how sure the model is of each pixel, 0-1.
    confidences: Mapping[str, Float[np.ndarray, "h w"]] = MappingProxyType({})
    # Rows of a table where `labels` do not say it all: a column by its name, alike in all rows.
    rows: tuple[Mapping[str, str | float], ...] = ()
    # Objects, the best first; None of a task that looks for none.
    boxes: tuple[FoundBox, ...] | None = None

    @property
    def table(self) -> tuple[Mapping[str, str | float], ...]:
        """The rows, or one a box, or one a label: {"label": ..., "probability": ...}."""
        if self.boxes is not None:
            sides = ("left", "top", "right", "bottom")
            return tuple(
                {
                    "label": box.label,
                    "score": box.score,
                    **dict(zip(sides, box.corners, strict=True)),
                }
                for box in self.boxes
            )
        labels = ({"label": name, "probability": x} for name, x in self.labels.items())
        return self.rows or tuple(labels)


@runtime_checkable
class Predicts(Protocol[Sees]):
    """A task that says what its model sees in an image of any size."""

    def predict_image(self, model: Sees, image: UInt8[np.ndarray, "h w c"]) -> Prediction:
        """What the model says of an image as it was read, whose labels nobody knows."""
        ...


@runtime_checkable
class Reports(Protocol[Sees]):
    """A task that says more of its test sets than their scores."""

    def report(self, model: Sees) -> tuple[dict[str, float], dict[str, Report]]:
        """The scores of `evaluate`, to the bit, and a `Report` by the name of each test set.

        Every process of a run calls it, and all get the same scores.
        """
        ...


@runtime_checkable
class Responds(Protocol[Sees]):
    """A task that says what its model sees in one program, which can be exported."""

    def respond(
        self, model: Sees, images: UInt8[Array, "b h w c"]
    ) -> Mapping[str, Shaped[Array, "b ..."]]:
        """The answers of `predict_image` to images of one size, as they were read; under `jax.jit`.

        Arrays by name, what most people want first; the others are exported if asked for.
        """
        ...


class Player(NamedTuple):
    """One of several losses that train parts of a model against each other, or side by side.

    All gradients of a step are taken at the same weights.
    """

    name: str  # of its metrics, and of its settings in `config.optimizers`, if it has its own
    trains: str  # a pattern of whole paths, among what the partition lets train
    loss: Loss

    def owns(self, path: str) -> bool:
        """Whether it trains the parameter of this path."""
        return re.fullmatch(self.trains, path) is not None


def players_of(task: Task) -> tuple[Player, ...]:
    """The players of a task; by default one, which trains everything."""
    found = getattr(task, "players", None)
    return (Player("", ".*", task.loss),) if found is None else tuple(found())
