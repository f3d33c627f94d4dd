"""Logs of a run: lines and a progress bar, metrics.jsonl, TensorBoard, W&B, pictures."""

from __future__ import annotations

import importlib
import io
import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vadapt.errors import ConfigError
from vadapt.runtime.storage import writing

# rich, tensorboardX, PIL and wandb are imported on first use, to keep `import vadapt` fast.

_LINE_EVERY = 10.0  # seconds between two progress lines where there is no terminal
_RATE_OVER = 30.0  # seconds that the moving average of images/s looks back
_RATE_MARKS = 64


class RunLog:
    """Tells how a run goes, on the terminal and in files under `workdir` (a local folder).

    Writes `log.txt`, `metrics.jsonl`, `pictures/*.png`, `tensorboard/` and, if asked, to W&B. While
    it is open, warnings of the loggers "vadapt.*" become lines of it too, and go nowhere else.

    Args:
        total_steps: the step at which the run is done.
        images_per_step: over all processes; for images/s.
        start_step: where a resumed run goes on; what an interrupted one has written to
            `metrics.jsonl` and TensorBoard after that step is dropped.
        wandb: log to Weights & Biases, too, with these arguments of `wandb.init` (project, name,
            entity; "" leaves one to W&B); a resumed run continues the same W&B run.
        config: shown by W&B.
        progress: a bar (True) or plain lines (False); by default a bar on a terminal.
        active: False in all processes but the first, where every method does nothing.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> with RunLog(folder, total_steps=10, images_per_step=4, progress=False) as log:
    ...     log.progress(10, {"loss": 0.5123, "lr": 0.0012})
    ...     log.metrics(10, {"loss": 0.5123})
    step 10/10  100%  loss 0.512  lr 1.2e-3
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        total_steps: int,
        images_per_step: int,
        start_step: int = 0,
        wandb: Mapping[str, str] | None = None,
        config: dict[str, Any] | None = None,
        progress: bool | None = None,
        active: bool = True,
    ):
        self.workdir = Path(workdir)
        self.active = active
        self._total, self._images = total_steps, images_per_step
        self._start = start_step
        self._marks: deque[tuple[float, int]] = deque(maxlen=_RATE_MARKS)
        self._last_line = -math.inf
        self._bar = self._events = self._wandb = None
        if not active:
            return
        from rich.console import Console

        self._console = Console()
        if progress is None:
            progress = self._console.is_terminal and not self._console.is_dumb_terminal
        self._show_bar = progress
        with writing(self.workdir):
            self.workdir.mkdir(parents=True, exist_ok=True)
        if wandb is not None:
            self._wandb = _open_wandb(self.workdir, wandb, config)
        dropped = _drop_later(self.workdir / "metrics.jsonl", start_step)
        self._handler = _attach(self)
        if dropped:
            self.text(f"metrics.jsonl: dropped {dropped} lines after step {start_step}")

    def rewind(self, start_step: int) -> None:
        """Goes on from a step before `start_step`; call it ahead of any metrics."""
        self._start = start_step
        if self.active:
            _drop_later(self.workdir / "metrics.jsonl", start_step)

    def text(self, message: str) -> None:
        """A line (or several) on the terminal, above the progress bar, and in `log.txt`."""
        if not self.active:
            return
        self._print(message)
        _append(self.workdir / "log.txt", _stamped(message))

    def metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds numbers (also NumPy or jax scalars) to `metrics.jsonl`, TensorBoard and W&B.

        A line is one flat object: "step", "time" (seconds since 1970), then the values by name. A
        value that is not finite is `null` there, since JSON has no NaN; TensorBoard gets it as is.
        """
        if not self.active:
            return
        numbers = {name: float(values[name]) for name in sorted(values)}
        finite = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        line = json.dumps({"step": int(step), "time": round(time.time(), 3), **finite})
        _append(self.workdir / "metrics.jsonl", line + "\n")
        self._write_events(step, [{"tag": k, "simple_value": x} for k, x in numbers.items()])
        if self._wandb is not None:
            self._wandb.log(numbers, step=int(step))

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Adds a picture as `pictures/<name>_<step>.png`, to TensorBoard and to W&B."""
        if not self.active:
            return
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        path = self.workdir / "pictures" / f"{name}_{int(step):06d}.png"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
        height, width, _ = image.shape
        picture = {"height": height, "width": width, "colorspace": 3}
        picture["encoded_image_string"] = buffer.getvalue()
        self._write_events(step, [{"tag": name, "image": picture}])
        if self._wandb is not None:
            wandb = importlib.import_module("wandb")
            self._wandb.log({name: wandb.Image(image)}, step=int(step))

    def progress(self, step: int, values: Mapping[str, Any]) -> None:
        """Shows steps done, `values`, images/s and the time left; call it when `step` is done.

        Without a terminal that is a line for the first and the last step, and at most one in 10 s
        between them.
        """
        if not self.active:
            return
        now = perf_counter()
        self._marks.append((now, int(step)))
        while len(self._marks) > 2 and now - self._marks[0][0] > _RATE_OVER:
            self._marks.popleft()
        parts = [f"{name} {_short(float(value))}" for name, value in values.items()]
        rate = self._steps_per_second()
        if rate:
            parts.append(f"{rate * self._images:.0f} images/s")
            parts.append(f"ETA {_clock((self._total - step) / rate)}")
        if self._show_bar:
            self._show(int(step), "  ".join(parts))
        elif step >= self._total or now - self._last_line >= _LINE_EVERY:
            self._last_line = now
            percent = math.floor(100 * step / max(self._total, 1))
            self._print("  ".join([f"step {step}/{self._total}", f"{percent}%", *parts]))

    @property
    def images_per_second(self) -> float:
        """The recent average; 0 before two calls of `progress`.

        Time before the first call is left out, since the first step compiles.
        """
        return self._steps_per_second() * self._images

    def close(self) -> None:
        """Ends the bar, frees the loggers, closes the files; after it every method does nothing."""
        if not self.active:
            return
        self.active = False
        if self._bar is not None:
            self._bar.stop()
        _detach(self._handler)
        if self._wandb is not None:
            self._wandb.finish()
        if self._events is not None:
            with writing(self.workdir / "tensorboard"):
                self._events.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _steps_per_second(self) -> float:
        if len(self._marks) < 2:
            return 0.0
        (begin, first), (end, last) = self._marks[0], self._marks[-1]
        return (last - first) / (end - begin) if end > begin else 0.0

    def _print(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _show(self, step: int, stats: str) -> None:
        if self._bar is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=20),
                TextColumn("{task.percentage:.0f}%"),
                TextColumn("{task.fields[stats]}", markup=False),
                console=self._console,
                refresh_per_second=2,
            )
            self._bar.add_task("", total=self._total, completed=self._start, stats="")
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=step, stats=stats)

    def _write_events(self, step: int, values: list[dict[str, Any]]) -> None:
        # tensorboardX's SummaryWriter would do this in a thread behind a multiprocessing queue,
        # and a killed run would lose what waits there.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore

        folder = self.workdir / "tensorboard"
        with writing(folder):
            if self._events is None:
                folder.mkdir(exist_ok=True)
                # A file's name has the time in seconds only: a quick restart would overwrite it.
                suffix = f".{os.getpid()}.{perf_counter():.6f}"
                self._events = EventsWriter(str(folder / "events"), suffix)
                start = SessionLog(status=SessionLog.START)  # hides later steps of other files
                event = Event(wall_time=time.time(), step=self._start + 1, session_log=start)
                self._events.write_event(event)
            summary = Summary(value=[Summary.Value(**value) for value in values])
            self._events.write_event(Event(wall_time=time.time(), step=int(step), summary=summary))
            self._events.flush()


class _Handler(logging.Handler):
    """Turns log records into lines of a run."""

    def __init__(self, log: RunLog):
        super().__init__(logging.WARNING)
        self.log = log
        self.propagated = logging.getLogger("vadapt").propagate

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.log.text(f"{record.levelname.lower()}: {self.format(record)} [{record.name}]")
        except Exception:  # a full disk must not turn a warning into a crash
            self.handleError(record)


def _attach(log: RunLog) -> _Handler:
    handler = _Handler(log)
    logger = logging.getLogger("vadapt")
    logger.addHandler(handler)
    logger.propagate = False  # absl's handler on the root would print it again, through the bar
    return handler


def _detach(handler: _Handler) -> None:
    logger = logging.getLogger("vadapt")
    logger.removeHandler(handler)
    logger.propagate = handler.propagated


def note(workdir: Path, message: str) -> None:
    """A line (or several) on the terminal and in `log.txt`, when no `RunLog` is open."""
    print(message, flush=True)
    _append(workdir / "log.txt", _stamped(message))


def _stamped(message: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n"


def _append(path: Path, line: str) -> None:
    with writing(path), open(path, "a", encoding="utf-8") as file:
        file.write(line)


def _drop_later(path: Path, start_step: int) -> int:
    """Removes the lines of a metrics file after `start_step`, and one cut by a kill; how many."""
    if not path.exists():
        return 0
    kept, dropped = [], 0
    before = path.read_text(encoding="utf-8", errors="replace")
    for line in before.splitlines():
        try:
            keep = json.loads(line)["step"] <= start_step
        except (ValueError, KeyError, TypeError, RecursionError):
            keep = False
        kept += [line] if keep else []
        dropped += not keep
    after = "".join(line + "\n" for line in kept)
    if after != before:  # may also end a last line that was complete but for its newline
        temporary = path.with_name(path.name + ".tmp")
        with writing(path):
            temporary.write_text(after, encoding="utf-8")
            os.replace(temporary, path)
    return dropped


def _open_wandb(workdir: Path, settings: Mapping[str, str], config: dict[str, Any] | None) -> Any:
    try:
        wandb = importlib.import_module("wandb")  # no dependency, so type checkers lack it
    except ImportError as error:
        raise ConfigError(
            "wandb is asked for but not installed; pip install wandb, or leave the flag out"
        ) from error
    id_file = workdir / "wandb_id.txt"
    run_id = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else None
    run = wandb.init(
        **{name: value for name, value in settings.items() if value},
        config=config,
        dir=str(workdir),
        id=run_id,
        resume="allow" if run_id else None,
    )
    id_file.write_text(f"{run.id}\n", encoding="utf-8")
    return run


def _short(value: float) -> str:
    """Three digits: 0.512, 1.2e-3, 1540."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 0.01 <= abs(value) < 100:
        return f"{value:.3g}"
    if 100 <= abs(value) < 1e5:
        return f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _clock(seconds: float) -> str:
    """2:31, or 1:02:31."""
    minutes, second = divmod(max(round(seconds), 0), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
