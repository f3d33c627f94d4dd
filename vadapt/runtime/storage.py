"""Messages for files of a run that cannot be written."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from vadapt.errors import TrainingError


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns an error of the file system into one that names the place and the next move.

    Raises:
        TrainingError: as said.
    """
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: str | os.PathLike[str], error: Exception) -> TrainingError:
    """The error to raise for one of the file system, or of a library that met one."""
    # tensorstore tells a page, with the system's number at one of its ends.
    code = re.search(r"os_error_code='?(\d+)", str(error))
    reason = os.strerror(int(code[1])) if code else getattr(error, "strerror", None)
    reason = reason or _first_line(error)
    return TrainingError(
        f"cannot write {os.fspath(path)!r}: {reason}. Make room there, or let it be written to; "
        "the same command then goes on from the newest checkpoint."
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
