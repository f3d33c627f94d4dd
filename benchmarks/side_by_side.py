"""Training steps timed side by side: every row in a process of its own, all in turns.

A row builds a model in whatever framework and gives its step; `train_step.py` holds the rows.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import math
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 2.0  # of a row in a round; at least one step
# Dense bfloat16 TFLOP/s by a part of the device's name; the first that matches counts.
PEAKS = {
    "b200": 2250, "h200": 989, "h100 pcie": 756, "h100": 989, "a100": 312, "l40s": 362, "l4": 121,
    "a10": 125, "rtx 4090": 165, "tpu v4": 275, "tpu v5 lite": 197, "tpu v5e": 197, "tpu v5": 459,
    "tpu v6": 918,
}  # fmt: skip


class Training(NamedTuple):
    """A model that is ready to step."""

    trainable: int
    step: Callable[[], Any]  # asks for one step, and compiles it if it is the first
    wait: Callable[[Any], Any]  # for what `step` gave
    peak: Callable[[], int | None]  # bytes on an accelerator


def jax_peak() -> int | None:
    """Bytes that JAX has had at most on an accelerator."""
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def torch_peak() -> int | None:
    """Bytes that PyTorch has had at most on a GPU."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def torch_wait(result: Any) -> Any:
    """The result, once a GPU has made it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result


class Row(NamedTuple):
    """One line of the table; a recipe adds its own with the pair that it belongs to."""

    pair: str
    who: str
    title: str
    build: Callable[[Any], Training]


class Missing(Exception):  # noqa: N818
    """Why a row cannot run here."""


class Worker:
    """The process of a row, and what is known of it."""

    def __init__(self, row: Row, job: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, row, job))
        self._process.start()
        theirs.close()
        self.batch = job.batch
        self.result = {"pair": row.pair, "who": row.who, "title": row.title, "rounds": []}
        self.result |= self._answer() or {}

    @property
    def runs(self) -> bool:
        return "missing" not in self.result

    def round(self, seconds: float) -> None:
        """Steps of so many seconds; at least one."""
        steps = max(1, math.ceil(seconds / self.result["step_seconds"]))
        if self.runs and (took := self._answer(steps)):
            self.result["rounds"].append(self.batch / took)

    def close(self) -> None:
        """Ends it."""
        if self.runs and (peak := self._answer(0)):
            self.result["peak_bytes"] = peak
        self._pipe.close()
        self._process.join()

    def _answer(self, question: int | None = None) -> Any:
        try:
            if question is not None:
                self._pipe.send(question)
            return self._pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            self.result["missing"] = f"failed (exit code {self._process.exitcode})"


def measure(
    rows: Sequence[Row], job: Any, rounds: int, seconds: float = SECONDS
) -> list[dict[str, Any]]:
    """The rows of one comparison, timed in turns; `job` (what they do alike) has a `batch`."""
    workers: list[Worker] = []
    try:
        for row in rows:
            workers.append(Worker(row, job))
            state = workers[-1].result.get("missing", "ready")
            print(f"{row.title}: {state}", file=sys.stderr, flush=True)
        for number in range(rounds):
            # Forth and back, so that no row always follows the same one.
            for worker in workers[:: -1 if number % 2 else 1]:
                if worker.runs:
                    worker.round(seconds)
    finally:
        for worker in workers:
            worker.close()
    return [worker.result for worker in workers]


def judge(results: list[dict[str, Any]], flops: float | None, kind: str) -> None:
    """Adds speeds, shares of the device's peak, and vadapt's speed over each other row's.

    Args:
        flops: of a step, an image; None where they are not known.
    """
    peak = next((value for part, value in PEAKS.items() if part in kind.lower()), None)
    ours = next((row["rounds"] for row in results if row["who"] == "vadapt"), [])
    for row in results:
        rounds = row["rounds"]
        if "missing" in row or not rounds:
            continue
        speed = statistics.median(rounds)
        row["images_per_second"] = {"median": speed, "least": min(rounds), "most": max(rounds)}
        if flops is not None:
            row["model_tflops_per_second"] = speed * flops / 1e12
            row["mfu"] = speed * flops / 1e12 / peak if peak else None
        if row["who"] != "vadapt" and len(ours) == len(rounds):
            ratios = [one / other for one, other in zip(ours, rounds, strict=True)]
            row["vadapt_over_this"] = statistics.median(ratios)


def serve(pipe: Any, row: Row, job: Any) -> None:
    """A row's process: says that it is ready, runs as many steps as it is told, says its peak."""
    try:
        before = _resident("VmRSS")
        training = row.build(job)
        began = time.perf_counter()
        training.wait(training.step())
        compiled = time.perf_counter()
        training.wait(training.step())
        seconds = time.perf_counter() - compiled
        pipe.send(
            {
                "trainable": training.trainable,
                "compile_seconds": compiled - began - seconds,
                "step_seconds": seconds,
            }
        )
        _reset_peak()
        while steps := pipe.recv():
            began = time.perf_counter()
            for _ in range(steps):
                last = training.step()
            training.wait(last)
            pipe.send((time.perf_counter() - began) / steps)
        peak = training.peak()
        pipe.send(_resident("VmHWM") - before if peak is None else peak)
    except Missing as reason:
        pipe.send({"missing": str(reason)})


def _resident(field: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM)."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))
    except FileNotFoundError:  # no Linux: the peak is all that is known
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _reset_peak() -> None:
    """Lets the peak begin now, so that a compiler's memory is not the step's."""
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.reset_peak_memory_stats()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def table(results: list[dict[str, Any]]) -> str:
    """As Markdown."""
    titles = ("row", "trains", "images/s", "vadapt over it", "peak memory", "TFLOP/s", "MFU")
    lines = ["| " + " | ".join((*titles, "compiles in")) + " |", "|---" * 8 + "|"]
    for row in results:
        cells = [row["title"]]
        if "images_per_second" not in row:
            cells += [row.get("missing", "no round was timed"), *[""] * 6]
        else:
            speed = row["images_per_second"]
            ratio, mfu = row.get("vadapt_over_this"), row.get("mfu")
            rate = row.get("model_tflops_per_second")
            cells += [
                f"{row['trainable']:,}",
                f"{speed['median']:.4g} ({speed['least']:.4g} to {speed['most']:.4g})",
                f"{ratio:.2f}x" if ratio else "",
                f"{row['peak_bytes'] / 2**20:,.0f} MiB" if "peak_bytes" in row else "",
                f"{rate:.3g}" if rate else "",
                f"{100 * mfu:.1f}%" if mfu else "",
                f"{row['compile_seconds']:.1f} s",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(
        "| " + " | ".join(line) + " |" for line in (titles, ["---"] * len(titles), *lines)
    )


def fill(page: str, tables: Mapping[str, str]) -> str:
    """A Markdown page with its tables made anew: each follows a comment that has its name.

    Raises:
        ValueError: the page has no place for a table.
    """
    for name, table in tables.items():
        mark = f"<!-- {name} -->\n"
        before, found, after = page.partition(mark)
        if not found:
            raise ValueError(f"no line {mark.strip()!r} says where the table stands")
        kept = itertools.dropwhile(lambda line: line.startswith("|"), after.splitlines(True))
        page = f"{before}{mark}{table}\n{''.join(kept)}"
    return page


def machine() -> str:
    """The machine and the versions."""
    import jax

    versions = {"jax": jax.__version__}
    for name in ("libtpu", "torch"):
        if importlib.util.find_spec(name):
            versions[name] = importlib.metadata.version(name)
    said = ", ".join(f"{name} {version}" for name, version in versions.items())
    device = jax.devices()[0].device_kind
    return f"{device} ({platform.machine()}, {os.cpu_count()} cores), {said}"
