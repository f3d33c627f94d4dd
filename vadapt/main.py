"""Trains, resumes or evaluates a config: `python -m vadapt.main --config=FILE[:ARG] --workdir=DIR`.

`vadapt train` and `vadapt evaluate` do the same. A recipe of vadapt goes by its name, without FILE.
Any setting can be changed on the command line, as in `--config.total_steps=500`; `--help` with a
config lists them all, `--print_config` shows what flags come to. The workdir gets

    config.json           the settings; a workdir of other settings is refused
    about.json            what using a run takes without its data, such as the classes
    log.txt               what the terminal showed
    metrics.jsonl         one line of numbers every `config.run.log_every` steps
    tensorboard/          the same and the pictures, for TensorBoard
    pictures/             what the model sees and makes
    checkpoints/          what trains, the optimizer, the data position
    compiled/             programs, for a quick restart; may be deleted
    adapter.safetensors   what was trained, to keep
    result.json           the numbers of the finished run
    evaluation.json       scores, each as soon as it is there
    evaluation/           of --mode=evaluate: classes, confusions and the worst images of each test
                          set, see docs/evaluation.md; besides these it writes scores, the log,
                          pictures and programs alone
    lock                  which process is at work here; a second run is refused

Stopped by a signal (or killed), the same command goes on from the newest checkpoint; a finished
run goes on with a larger `--config.total_steps`. With `--from=DIR` a new workdir goes on from what
was trained in DIR, under settings of its own. The exit code is 0 for a finished run only, 130 or
143 after Ctrl-C or SIGTERM, 1 after an error.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

from absl import app, flags, logging

from vadapt.command_line import CONFIG, parse, print_error
from vadapt.errors import VadaptError

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; made if it is not there.")
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "resume", "evaluate"],
    "train: start, or go on where the workdir stands; resume: go on, and fail if there is nothing "
    "to go on from; evaluate: score the newest checkpoint without training.",
)
OUT = flags.DEFINE_string(
    "out", None, "With --mode=evaluate: the folder to write to; the workdir is only read."
)
FROM = flags.DEFINE_string(
    "from",
    None,
    "Another run's workdir, or DIR/checkpoints/STEP of it: the new --workdir starts from what was "
    "trained there, under settings of its own, and later goes on without it. DIR is only read.",
)


def main(argv: list[str]) -> None:
    """Runs the flags; errors that vadapt raises on purpose are printed without a traceback."""
    logging.set_verbosity(logging.WARNING)  # orbax narrates every file it writes
    # These import jax: flags are checked first, so that a wrong one costs no time.
    from vadapt import run
    from vadapt.runtime import distributed
    from vadapt.runtime.interrupt import StopSignal

    try:
        distributed.start()
        workdir = Path(str(WORKDIR.value))
        options = {"mode": MODE.value, "out": OUT.value, "start_from": FROM.value}
        finished = run.run(CONFIG.value, workdir, **options)
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, VadaptError):
            print_error(error)
        elif not isinstance(error, KeyboardInterrupt):
            traceback.print_exc()
        distributed.leave_at_once()
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)
    if not finished:
        sys.exit(StopSignal.exit_code())


if __name__ == "__main__":
    app.run(main, flags_parser=lambda argv: parse(argv, ["workdir"], "--workdir=DIR"))
