"""The lock of a workdir: one run at a time, which it names, and which a kill sets free."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax

from vadapt.errors import ConfigError
from vadapt.runtime.storage import writing

FILE = "lock"
_TAKEN = (errno.EAGAIN, errno.EACCES)


@contextlib.contextmanager
def locked(workdir: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps other runs out of a workdir while it is open; the processes of this run share it.

    The first process holds a lock of the operating system on `WORKDIR/lock`, which ends with the
    process, however that ends. The file says who holds it: host, process, since when. On file
    systems without locks the file alone counts, until a process of this host that it names is gone.

    Raises:
        ConfigError: in every process: another run is at work there; names it.
        TrainingError: the file cannot be written.
    """
    path = Path(workdir) / FILE
    file, held = None, ""
    if jax.process_index() == 0:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        held = _take(file)
    with contextlib.ExitStack() as opened:
        if file is not None:
            opened.callback(file.close)
        if _anywhere(bool(held)):
            raise ConfigError(
                f"{os.fspath(workdir)!r} is in use by {held or 'another run'}: wait for it, end "
                "it, or take another --workdir"
            )
        if file is not None:
            with writing(path):
                _write(file, {"host": socket.gethostname(), "process": os.getpid()})
            opened.callback(_forget, file)
        yield


def _take(file: IO[str]) -> str:
    """Locks a file, or says who holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return ""
    except OSError as error:
        holder = _holder(file)
        if error.errno not in _TAKEN:  # no locks here
            lives = holder and (holder["host"] != socket.gethostname() or _lives(holder["process"]))
            return f"{_described(holder)} (if it is gone, remove {file.name!r})" if lives else ""
        return _described(holder)


def _holder(file: IO[str]) -> dict[str, Any]:
    """What the file says; nothing if it is empty, or was cut."""
    file.seek(0)
    with contextlib.suppress(ValueError, KeyError, TypeError):
        found = json.loads(file.read())
        return {"host": str(found["host"]), "process": int(found["process"]), **found}
    return {}


def _described(holder: dict[str, Any]) -> str:
    if not holder:
        return "another run"
    since = holder.get("since", "a time unknown")
    return f"process {holder['process']} on {holder['host']} since {since}"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _write(file: IO[str], holder: dict[str, Any]) -> None:
    file.truncate(0)
    file.write(json.dumps({**holder, "since": time.strftime("%Y-%m-%d %H:%M:%S")}) + "\n")
    file.flush()


def _forget(file: IO[str]) -> None:
    # The file stays: whoever opened it meanwhile waits for this one, not for a new one of its name.
    with contextlib.suppress(OSError):
        file.truncate(0)


def _anywhere(taken: bool) -> bool:
    """Whether it is so in any process of this run."""
    if jax.process_count() == 1:
        return taken
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(taken))
