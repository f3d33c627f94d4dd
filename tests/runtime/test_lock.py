"""The lock of a workdir: it names its holder, and outlives nobody."""

import errno
import fcntl
import json
import os
import re
import signal
import socket

import pytest

from tests.processes import python
from vadapt.errors import ConfigError
from vadapt.runtime.lock import locked

HOLD = """
import sys, time
from vadapt.runtime.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(300)
"""


def test_a_second_run_is_refused_in_one_line_until_the_first_is_killed(tmp_path):
    holder = python(HOLD, tmp_path)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError) as error, locked(tmp_path):
            pass
        words = rf"in use by process {holder.pid} on {re.escape(socket.gethostname())} since 20\d\d"
        assert re.search(words, str(error.value))
        assert "\n" not in str(error.value)
    finally:
        holder.kill()
        assert holder.wait() == -signal.SIGKILL
    holder.communicate()
    with locked(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()
    assert (tmp_path / "lock").read_text() == ""


def test_one_process_does_not_run_twice_in_a_workdir(tmp_path):
    refused = pytest.raises(ConfigError, match=f"in use by process {os.getpid()}")
    with locked(tmp_path), refused, locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("holder", "refused"),
    [
        ({"host": socket.gethostname(), "process": os.getpid()}, True),
        ({"host": socket.gethostname(), "process": 2**22 + 1}, False),  # above what Linux gives
        ({"host": "elsewhere", "process": 1}, True),
        (None, False),
    ],
)
def test_without_locks_of_the_system_the_file_counts(tmp_path, monkeypatch, holder, refused):
    def none(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    path = tmp_path / "lock"
    path.write_text("{" if holder is None else json.dumps(holder))
    if refused:
        words = rf"in use by process {holder['process']} .*if it is gone, remove .*lock"
        with pytest.raises(ConfigError, match=words), locked(tmp_path):
            pass
        return
    with locked(tmp_path):
        assert json.loads(path.read_text())["process"] == os.getpid()
