"""The command line: what is wrong is said in a few lines, before anything is computed."""

import re
import signal
import sys
import time

import pytest

from tests import processes
from tests.processes import finish

SCENES = "--config=configs/pad_msip.py:scenes"
TINY = (
    SCENES,
    "--config.model.backbone=tests.tiny:one_block",
    "--config.model.weights=",
    "--config.batch_size=16",
    "--config.data.num_scenes=64",
    "--config.data.image_size=32,32",
    "--config.task.decoder_depth=1",
    "--config.eval.probe_scenes=0",
    "--config.run.log_every=1",
)


def spawn(*arguments):
    return processes.spawn([sys.executable, "-m", "vadapt.main", *arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([SCENES, "--config.totl_steps=3"], "unknown setting config.totl_steps; .*'total_steps'"),
        ([SCENES, "--config.base_lr=1"], "unknown setting config.base_lr; .*'optimizer.base_lr'"),
        (["--config=configs/pad_msip.py:scnes"], r"unknown argument \['scnes'\]; allowed: small"),
        (["--config=configs/pad_mspi.py"], "no config file .*; nearest: 'configs/pad_msip.py'"),
        ([SCENES, "--config.total_steps=many"], "config.total_steps=many: .*expected int"),
        ([SCENES, "--config.data.image_size=64"], "image_size takes 2 values, .*=64,64"),
        ([SCENES, "--mode=tran"], r"--mode=tran: .*<train\|resume\|evaluate>"),
        ([SCENES, "--wrkdir=x"], "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
        ([SCENES, "x"], r"unexpected arguments \['x'\]"),
        ([], "--config missing"),
    ],
)
def test_a_wrong_command_line_is_answered_in_a_few_lines(tmp_path, arguments, message):
    said, errors = finish(spawn(f"--workdir={tmp_path / 'run'}", *arguments), code=1)
    assert said == ""
    assert len(errors.splitlines()) <= 3
    assert re.search(message, errors)
    assert not (tmp_path / "run").exists()


def test_missing_workdir_is_named():
    _, errors = finish(spawn(SCENES), code=1)
    assert "ConfigError: --workdir missing" in errors


def test_a_run_stopped_by_sigterm_exits_cleanly_and_keeps_its_workdir(tmp_path):
    file = tmp_path / "metrics.jsonl"
    command = (*TINY, "--config.total_steps=100000", f"--workdir={tmp_path}")
    process = spawn(*command)
    while process.poll() is None and not (file.exists() and file.read_text().count("\n") > 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, errors = finish(process)
    assert errors == ""
    assert re.search(r"stopped by a signal after step \d+, saved; the same command goes on", said)
    assert not (tmp_path / "result.json").exists()

    said, errors = finish(spawn(*command, "--config.seed=1"), code=1)
    assert said == ""
    assert "config.seed: 0 there, 1 now" in errors
