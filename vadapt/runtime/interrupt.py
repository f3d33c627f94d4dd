"""Stopping: a signal (preemption, Ctrl-C) ends a run at the next step, a lost process at once."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import ClassVar

import jax

from vadapt.errors import TrainingError

_GONE = (
    "another process of this run is gone, and this one cannot go on alone{why}. What that process "
    "said last tells the reason; if it said nothing it was killed: by hand, for its memory, or "
    "with its machine. Start all of them again with the same command: they go on from the newest "
    "checkpoint."
)
# What XLA says of a collective, or of its coordination service, that lost one of its members.
_LOST = re.compile(r"Gloo|NCCL|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|heartbeat|[Cc]onnection")
_C_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


class StopSignal:
    """Remembers that a stop was asked for while the context is open.

    A second signal of the same kind acts as usual, so that a hung run can still be killed. With
    several processes, one signal to one of them stops all, at the same step.
    """

    _heeded: ClassVar[int] = signal.SIGTERM

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
        StopSignal._heeded = number
        signal.signal(number, self._previous[number])  # type: ignore[arg-type]
        if signal.SIGTERM not in self._previous:
            os.kill(os.getpid(), signal.SIGTERM)

    @classmethod
    def exit_code(cls) -> int:
        """What this process ends with if its run was stopped: 128 and the signal, as shells say it.

        SIGTERM's, 143, in processes that another one's signal stopped.
        """
        return 128 + cls._heeded

    def requested(self, step: int) -> bool:
        """Whether to stop now; call it before every step.

        With several processes all get the same answer at the same step, some steps (about a
        second) after the signal: jax's preemption service agrees on it in the background.
        """
        if jax.process_count() == 1:
            return self._asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def partners() -> Iterator[None]:
    """Says in a few lines that another process of the run is gone, where jax says it in pages.

    A collective may fail at once (gloo does), which becomes a TrainingError. Else, after 100 s
    without a sign of life (at once if it was process 0), jax aborts this process: our words are
    then the last ones, and the exit code is 1.

    Raises:
        TrainingError: as said.
    """
    if jax.process_count() == 1:
        yield
        return
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    library.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    handler = _C_HANDLER(_last_words)
    before = library.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        why = f" ({str(error).splitlines()[0][:200]})"
        raise TrainingError(_GONE.format(why=why)) from error
    finally:
        library.signal(signal.SIGABRT, before)


def _last_words(number: int) -> None:
    """Called by C from the thread that aborts: a handler of Python's would come too late."""
    os.write(2, f"\nTrainingError: {_GONE.format(why='')}\n".encode())
    os._exit(1)
