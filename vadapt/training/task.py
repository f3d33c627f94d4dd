"""The contract of a task: all that the trainer, `run`, `plan`, `predict` and export call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, UInt8

from vadapt.data.stream import Stream

Batch = Mapping[str, Array]


@runtime_checkable
class Task(Protocol):
    """What is learned, from which data, and how it is evaluated; see `vadapt.tasks`.

    A task may also have `evaluates_initial` (False: scores before training say nothing), `players`
    (see `Player`) and `after_update` (see `Remembers`).
    """

    config: Any

    @property
    def backbone_options(self) -> Mapping[str, Any]:
        """Options of the backbone besides its name and size, for the adapter file."""
        ...

    def build(self, *, pretrained: bool = True) -> nnx.Module:
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

    def loss(self, model: Any, batch: Any, key: Array) -> tuple[Any, ...]:
        """The loss of a batch, a scalar in float32, and metrics by name.

        All randomness comes from the key. Averages over a part of the batch are taken with
        `vadapt.micro_batches.batch_average`. A third result, if there is one, are arrays by name
        with the batch's images first, for `after_update`.
        """
        ...

    def evaluate(self, model: Any, on: str = "test") -> dict[str, float]:
        """Scores by name.

        Args:
            on: "test", or "validation" while training.
        """
        ...

    def export(self, model: Any) -> nnx.Module:
        """The part of the model that people keep."""
        ...

    def pictures(self, model: Any, batch: Any) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """What people look at, by name, of the first images of a batch."""
        ...


class Remembers(Protocol):
    """A task whose model remembers: a teacher that follows, a queue, templates, prototypes."""

    def after_update(self, model: Any, outputs: Mapping[str, Array]) -> None:
        """Move what the model remembers, in place: variables of `Teacher` and `Queue`.

        It is called once a step, whatever the number of micro-batches, with the weights after the
        update, in float32. What the loss does to these variables is dropped; it sees them in the
        compute type.

        Args:
            outputs: what the loss returned as its third result, of the whole batch in its order.
        """
        ...


class Player(NamedTuple):
    """One of several losses that train parts of a model against each other, or side by side.

    All gradients of a step are taken at the same weights.
    """

    name: str  # of its metrics, and of its settings in `config.optimizers`, if it has its own
    trains: str  # a pattern of whole paths, among what the partition lets train
    loss: Any  # as `Task.loss`

    def owns(self, path: str) -> bool:
        """Whether it trains the parameter of this path."""
        return re.fullmatch(self.trains, path) is not None


def players_of(task: Task) -> tuple[Player, ...]:
    """The players of a task; by default one, which trains everything."""
    found = getattr(task, "players", None)
    return (Player("", ".*", task.loss),) if found is None else tuple(found())
