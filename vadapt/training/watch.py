"""The metrics of steps as the devices finish them: a loss that is not finite stops the run."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from vadapt.errors import TrainingError
from vadapt.training.checkpoint import Checkpoints

_RIGHT_AFTER = 10  # steps after a resume, in which a loss that is not finite may come from it


class Watch:
    """The metrics of steps, some of which the devices are still at work on.

    Args:
        start: the step that this session goes on from; 0 if it goes on from none.
    """

    def __init__(self, checkpoints: Checkpoints, start: int = 0):
        self._checkpoints, self._start = checkpoints, start
        self._pending: list[tuple[int, Any]] = []
        self._losses: list[float] = []

    def add(self, step: int, metrics: Any) -> None:
        """Takes the metrics of one step, and waits for those of the step before.

        One step ahead of the devices is enough to keep them busy, more only costs memory.
        """
        self._pending.append((step, metrics))
        if len(self._pending) > 1:
            jax.block_until_ready(self._pending[-2])

    def read(self) -> dict[str, float]:
        """The newest metrics as numbers, or nothing if there are no new ones.

        Raises:
            TrainingError: a number, of any step since the last reading, is not finite.
        """
        values: dict[str, float] = {}
        for step, metrics in self._pending:
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            for name, value in values.items():
                if not math.isfinite(value):
                    raise TrainingError(self._advice(step, name, value))
            self._losses.append(values["loss"])
        self._pending.clear()
        return values

    def mean_loss(self) -> float:
        """Over all steps read since this was last asked."""
        losses, self._losses = self._losses, []
        return float(np.mean(losses)) if losses else math.inf

    def _advice(self, step: int, name: str, value: float) -> str:
        self._checkpoints.wait()
        good = self._checkpoints.latest()
        if self._start and step <= self._start + _RIGHT_AFTER:
            place = f"{self._checkpoints.directory}/{self._start}"
            return (
                f"{name} is {value} at step {step}, right after going on from checkpoint "
                f"{self._start}, which may be the cause: move {place!r} away, and the same command "
                "goes on from the one before it, or starts anew. If that ends here, too, lower "
                "config.optimizer.lr in a new workdir."
            )
        return (
            f"{name} is {value} at step {step}; the last good checkpoint is "
            f"{'none' if good is None else f'step {good}'}. Lower config.optimizer.lr, set "
            "config.optimizer.clip_norm, or compute in float32, in a new workdir."
        )
