"""What a run of the tests cost: its dearest files, and the largest memory of a worker."""

import resource
import sys
from collections import defaultdict

import pytest

BUDGET = 30  # seconds a file, on two cores
SHOWN = 5

_seconds = defaultdict(float)
_peaks = {}


def pytest_runtest_logreport(report):
    """Add a test's setup, call or teardown to its file."""
    _seconds[report.nodeid.partition("::")[0]] += report.duration


def pytest_sessionfinish(session):
    """Tell the process that started this worker how much memory it took."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak"] = _peak()
    else:
        _peaks.setdefault("main", _peak())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Note the memory of a worker that has ended."""
    _peaks[node.gateway.id] = getattr(node, "workeroutput", {}).get("peak", 0)


def pytest_terminal_summary(terminalreporter):
    """Print the dearest files; those beyond the budget are marked."""
    if not _seconds:
        return
    terminalreporter.section("dearest files, in seconds")
    dearest = sorted(_seconds.items(), key=lambda item: -item[1])[:SHOWN]
    for name, seconds in dearest:
        over = f"  over the budget of {BUDGET}" if seconds > BUDGET else ""
        terminalreporter.write_line(f"{seconds:6.1f}  {name}{over}")
    total = sum(_seconds.values())
    memory = ", ".join(f"{name} {peak / 2**30:.2f}" for name, peak in sorted(_peaks.items()))
    terminalreporter.write_line(f"{total:6.1f}  in all; largest memory in GiB: {memory}")


def _peak():
    """Bytes; the system counts in KiB on Linux."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
