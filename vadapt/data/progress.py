"""The bar of commands that go through a data set."""

from __future__ import annotations

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
