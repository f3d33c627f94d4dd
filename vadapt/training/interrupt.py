"""Stopping cleanly: SIGTERM (preemption) and Ctrl-C end a run at the next step boundary."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

import jax


class StopSignal:
    """Remembers that a stop was asked for while the context is open.

    A second signal of the same kind acts as usual, so that a hung run can still be killed. With
    several processes, one signal to one of them stops all, at the same step.
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        # Python allows handlers in the main thread only; elsewhere (notebooks) there are none.
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGTERM, signal.SIGINT]
            if jax.process_count() > 1:
                numbers.remove(signal.SIGTERM)  # jax's own handler tells the other processes
            for number in numbers:
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        signal.signal(number, self._previous[number])  # type: ignore[arg-type]
        if signal.SIGTERM not in self._previous:
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Whether to stop now; call it before every step.

        With several processes all get the same answer at the same step, some steps (about a
        second) after the signal: jax's preemption service agrees on it in the background.
        """
        if jax.process_count() == 1:
            return self._asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
