"""Processes that tests start: several of one run, through launch/local.sh, or one alone."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests import quick_programs

ROOT = Path(__file__).parent.parent
PATIENCE = 300  # seconds; a test machine may have two cores and much to do
TINY = {
    "total_steps": 3,
    "batch_size": 16,
    "model.backbone": "tests.tiny:one_block",
    "model.weights": "",
    "data.num_scenes": 64,
    "data.image_size": "32,32",
    "task.decoder_depth": 1,
    "eval.probe_scenes": 0,
}


def settings(**changes):
    """A tiny run of the `scenes` as arguments; names with two underscores for dots."""
    changed = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    return [f"--config.{name}={value}" for name, value in changed.items()]


def environment(*, devices=1, **changes):
    """This one's, with that many CPU devices, this Python as `python`, no trace of a launcher."""
    launchers = ("JAX_COORD", "JAX_NUM", "JAX_PROCESS", "SLURM_", "TPU_", "MEGASCALE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{quick_programs.flags()} --xla_force_host_platform_device_count={devices}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        # Another process writes that program just now; it is compiled instead.
        "PYTHONWARNINGS": "ignore:Error reading persistent compilation cache entry",
        **changes,
    }


def spawn(command, cwd=ROOT, stdin=subprocess.DEVNULL, **changes):
    """A process, its two outputs piped; changes are of its `environment`."""
    command = [str(part) for part in command]
    pipe, variables = subprocess.PIPE, environment(**changes)
    with default_signals():
        return subprocess.Popen(
            command, cwd=cwd, env=variables, stdin=stdin, stdout=pipe, stderr=pipe, text=True
        )


def python(code, *arguments, **changes):
    """A process that runs Python code; the arguments are its sys.argv[1:]."""
    return spawn([sys.executable, "-c", code, *arguments], **changes)


@contextlib.contextmanager
def default_signals():
    """Signals act here, and in what is started here, as they do in a terminal.

    A shell starts its background jobs with Ctrl-C ignored, and they hand that on.
    """
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def local(count, command):
    """Some processes of one run, which find each other."""
    return spawn(["launch/local.sh", count, *command])


def finish(*processes, code=0):
    """What they said on both outputs, when all have ended with that code."""
    try:
        outputs = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.terminate()
    for process, (said, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == code, said[-3000:] + errors[-3000:]
    return outputs if len(outputs) > 1 else outputs[0]


def lines_of(number, output):
    """What one of the processes of `local` said."""
    mark = f"[{number}] "
    return "".join(
        line.removeprefix(mark) for line in output.splitlines(True) if line.startswith(mark)
    )


def free_address():
    """Of a port on this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"
