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
        ([SCENES, "--config.opt_lr=1"], "unknown setting config.opt_lr; .*'optimizer.lr'"),
        (["--config=configs/pad_msip.py:scnes"], r"unknown argument \['scnes'\]; allowed: small"),
        (["--config=configs/pad_mspi.py"], "no config file .*; nearest: 'configs/pad_msip.py'"),
        (["--config=pad_mspi"], "no config file 'pad_mspi'; nearest: 'pad_msip'"),
        (["--config=pad_msip:scnes"], r"--config=pad_msip:scnes: unknown argument \['scnes'\]"),
        ([SCENES, "--config.total_steps=many"], "config.total_steps=many: .*expected int"),
        ([SCENES, "--config.data.image_size=64"], "image_size takes 2 values, .*=64,64"),
        (
            ["--config=configs/linear_dinov2.py", "--config.eval.crop=64"],
            r"crop takes 2 values, .*=518,518, or \(\) for none; it was given \(64,\)",
        ),
        ([SCENES, "--mode=tran"], r"--mode=tran: .*<train\|resume\|evaluate>"),
        ([SCENES, "--wrkdir=x"], "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
        ([SCENES, "x"], r"unexpected arguments \['x'\]"),
        ([], "--config missing; expected --config=pad_msip:scenes --workdir=DIR"),
    ],
)
def test_a_wrong_command_line_is_answered_in_a_few_lines(tmp_path, arguments, message):
    said, errors = finish(spawn(f"--workdir={tmp_path / 'run'}", *arguments), code=1)
    assert said == ""
    assert len(errors.splitlines()) <= 3
    assert re.search(message, errors)
    assert not (tmp_path / "run").exists()


def test_help_on_a_recipe_is_its_words_and_its_settings():
    said, _ = finish(spawn(SCENES, "--help"))
    assert said.startswith("PAD on MSIP: a frozen MAE ViT learns infrared")
    assert "--config.data.image_size=64,64\n" in said


def test_tuples_may_have_any_length_and_the_settings_are_printed():
    flags = ("eval.scales=(0.75,1.0,1.25)", "eval.crop=()", "task.layers=(2,5)")
    command = ("--config=configs/linear_dinov2.py:scenes", *(f"--config.{flag}" for flag in flags))
    said, _ = finish(spawn(*command, "--config.trainable=(biases,head)", "--print_config"))
    settings = dict(line.removeprefix("--config.").split("=", 1) for line in said.splitlines())
    assert settings["eval.scales"] == "0.75,1.0,1.25"
    assert settings["eval.crop"] == "'()'"
    assert settings["task.layers"] == "2,5"
    assert settings["trainable"] == "'(biases,head)'"


def test_a_test_set_of_any_name_can_be_added():
    recipe = "--config=configs/linear_dinov2.py:scenes"
    said, _ = finish(spawn(recipe, "--config.test.night.scene_seed=7", "--print_config"))
    assert "--config.test.night.scene_seed=7\n" in said
    _, errors = finish(spawn(recipe, "--config.tset.night.scene_seed=7", "--print_config"), code=1)
    assert "unknown setting config.tset.night.scene_seed" in errors


def test_missing_workdir_is_named():
    _, errors = finish(spawn(SCENES), code=1)
    assert "ConfigError: --workdir missing" in errors


def test_a_fork_of_nothing_is_refused(tmp_path):
    _, errors = finish(spawn(*TINY, f"--workdir={tmp_path / 'run'}", "--from=nowhere"), code=1)
    assert re.search("--from=nowhere: no complete checkpoint under '.*/nowhere'\n", errors)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_says_so_by_its_exit_code_and_keeps_its_workdir(tmp_path, number, code):
    file = tmp_path / "metrics.jsonl"
    command = (*TINY, "--config.total_steps=100000", f"--workdir={tmp_path}")
    process = spawn(*command)
    while process.poll() is None and not (file.exists() and file.read_text().count("\n") > 2):
        time.sleep(0.05)
    process.send_signal(number)
    said, errors = finish(process, code=code)
    assert errors == ""
    assert re.search(r"stopped by a signal after step \d+, saved; the same command goes on", said)
    assert not (tmp_path / "result.json").exists()

    said, errors = finish(spawn(*command, "--config.seed=1"), code=1)
    assert said == ""
    assert "config.seed: 0 there, 1 now" in errors
