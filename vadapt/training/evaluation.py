"""Evaluation while training: when, which checkpoint is best so far, and when to stop early."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vadapt.errors import ConfigError, nearest
from vadapt.training.checkpoint import Checkpoints


@dataclass(frozen=True)
class EvaluationSettings:
    """Fields of `config.eval` that every task has; see `Evaluations`."""

    every: int
    best: str = ""
    patience: int = 0
    num_pictures: int = 4
    num_worst: int = 16  # images on the sheet of --mode=evaluate, see `training.report`


class Evaluations:
    """The evaluations of a run, by `config.eval`; the best checkpoint is remembered on disk.

    Fields: `every` (steps between evaluations on the validation sets; 0: none), `best` (the score
    that says which checkpoint counts in the end, such as "mean/miou": the highest, of a name with
    "loss" the lowest; "": the last one counts) and `patience` (evaluations without a new best after
    which training ends; 0: it goes on). A score that is not finite is never the best.

    Raises:
        ConfigError: a best checkpoint without evaluations, or patience without a best one.
    """

    def __init__(self, config: Any, checkpoints: Checkpoints):
        self.every, self.best, self.patience = _settings(config)
        # Whose checkpoint counts in the end; None: the last one's.
        self.best_step = checkpoints.best() if self.best else None
        self._best_score = self._score = math.nan
        self._step = -1  # of that score
        self._first = -1  # the first step that was evaluated here
        if self.best_step is not None:
            self._best_score = checkpoints.score(self.best_step)

    def due(self, step: int, last: int) -> bool:
        """Whether to evaluate after a step; after the last one only to find the best."""
        return bool(self.every) and (step % self.every == 0 if step < last else bool(self.best))

    def add(self, step: int, scores: Mapping[str, float]) -> str:
        """Takes the scores of a step; returns a line about them.

        Raises:
            ConfigError: there is no score of the name that `best` says.
        """
        if not self.best:
            shown = [name for name in scores if name.startswith("mean/")] or [*scores]
            return f"step {step}: " + ", ".join(f"{n} {scores[n]:.4g}" for n in shown[:4])
        if self.best not in scores:
            raise ConfigError(f"config.eval.best={self.best!r}; {nearest(self.best, scores)}")
        self._step, self._score = step, (score := scores[self.best])
        self._first = step if self._first < 0 else self._first
        sign = -1.0 if mode_of(self.best) == "min" else 1.0
        first = self.best_step is None
        if math.isfinite(score) and (first or sign * score >= sign * self._best_score):
            self.best_step, self._best_score = step, score
            return f"step {step}: {self.best} {score:.4g}, the best so far"
        shown = f"step {step}: {self.best} {score:.4g}"
        if not math.isfinite(score):
            shown += ", which is not finite and so never the best"
        if first:
            return f"{shown}; there is no best one yet"
        return f"{shown}; the best, {self._best_score:.4g}, is of step {self.best_step}"

    def marks(self, step: int) -> dict[str, float]:
        """The score that a checkpoint of a step is kept by; NaN where it was not evaluated."""
        if not self.best:
            return {}
        return {self.best: self._score if step == self._step else math.nan}

    def over(self, step: int) -> bool:
        """Whether training ends early after a step: so many evaluations brought no new best."""
        if not self.patience:
            return False
        if self.best_step is not None:
            return step - self.best_step >= self.patience * self.every
        # No score was finite. Only evaluations of this session are known to have been so.
        failed = 0 if self._first < 0 else (step - self._first) // self.every + 1
        return failed >= self.patience


def best_of(config: Any) -> tuple[str, str]:
    """The score that makes a checkpoint the best, by default its loss, and "max" or "min"."""
    _, best, _ = _settings(config)
    return best or "loss", mode_of(best or "loss")


def mode_of(name: str) -> str:
    """Whether the highest or the lowest of a score is best."""
    return "min" if "loss" in name else "max"


def _settings(config: Any) -> tuple[int, str, int]:
    every, best = config.eval.every, config.eval.get("best", "")
    patience = config.eval.get("patience", 0)
    if best and not every:
        raise ConfigError(f"config.eval.best={best!r} needs config.eval.every: steps, above 0")
    if patience and not best:
        raise ConfigError(f"config.eval.patience={patience} needs config.eval.best: a score's name")
    return every, best, patience
