"""The bars of what goes through a data set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def progress_bar() -> Any:
    """A bar with counts, the time taken and the time left."""
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )


def with_progress(batches: Iterable[Any], title: str) -> Iterator[Any]:
    """The same, counted aloud by process 0 of a terminal."""
    import jax
    from rich.console import Console
    from rich.progress import track

    quiet = jax.process_index() > 0 or not Console().is_terminal
    yield from track(batches, title, disable=quiet, transient=True)
