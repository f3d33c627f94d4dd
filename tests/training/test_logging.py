"""What a run says: on the terminal, in its files, and to W&B."""

import io
import json
import logging
import math
import struct
import sys
import types

import numpy as np
import pytest
from PIL import Image

from tests.training.toy import full_disk
from vadapt.errors import ConfigError, TrainingError
from vadapt.training.logging import RunLog

NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)  # 852 bytes as PNG


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns: `clock.now += 1`."""
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr("vadapt.training.logging.perf_counter", lambda: clock.now)
    return clock


@pytest.fixture
def fake_wandb(monkeypatch):
    """A stand-in for wandb that notes what it is told."""
    module = types.ModuleType("wandb")
    module.inits, module.logged, module.finished = [], [], []

    def init(**settings):
        module.inits.append(settings)
        return types.SimpleNamespace(
            id="run7",
            log=lambda values, step: module.logged.append((step, values)),
            finish=lambda: module.finished.append(True),
        )

    module.init, module.Image = init, lambda array: ("image", array.shape)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def make_log(folder, **settings):
    settings = {"total_steps": 1200, "images_per_step": 64, "progress": False} | settings
    return RunLog(folder, **settings)


def read_metrics(folder):
    text = (folder / "metrics.jsonl").read_text()
    return [
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        for line in text.splitlines()
    ]


def read_events(folder):
    """The events of all files, through the TFRecord framing: length, crc, data, crc."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[12 + length + 4 :]
    return events


def test_metrics_are_flat_lines_of_json(tmp_path):
    with make_log(tmp_path) as log:
        log.metrics(1, {"loss": np.float32(0.5), "acc": 1})
        log.metrics(2, {"loss": math.nan, "acc": math.inf})
        # Nothing waits in memory for the end of the run.
        first, second = read_metrics(tmp_path)
    assert list(first) == ["step", "time", "acc", "loss"]
    assert (first["step"], first["loss"], first["acc"]) == (1, 0.5, 1.0)
    assert second["loss"] is second["acc"] is None


def test_a_resumed_run_drops_what_was_written_after_its_start(tmp_path, capsys):
    with make_log(tmp_path) as log:
        for step in (10, 20, 30):
            log.metrics(step, {"loss": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "lo')
    with make_log(tmp_path, start_step=20) as log:
        log.metrics(25, {"loss": 25})
    assert [line["step"] for line in read_metrics(tmp_path)] == [10, 20, 25]
    assert "dropped 2 lines after step 20" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.tmp")} == set()


@pytest.mark.parametrize(
    ("size", "write", "named"),
    [
        (100, lambda log: log.text("x" * 200), "log.txt"),
        (100, lambda log: log.metrics(2, {f"m_{i}": 0.5 for i in range(20)}), "metrics.jsonl"),
        (100, lambda log: log.image(2, "a", NOISE), "pictures/a_000002.png"),
        (860, lambda log: log.image(2, "a", NOISE), "tensorboard"),
    ],
)
@pytest.mark.usefixtures("capsys")  # captures in memory, not in a file
def test_a_full_disk_is_named_and_leaves_a_log_to_go_on_with(tmp_path, size, write, named):
    with make_log(tmp_path) as log:
        log.metrics(1, {"loss": 1.0})
    full = pytest.raises(TrainingError, match=f"cannot write '.*/{named}': File too large")
    with full, full_disk(size), make_log(tmp_path, start_step=1) as log:
        write(log)
    with make_log(tmp_path, start_step=1) as log:
        log.metrics(2, {"loss": 2.0})
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"cannot write '.*/file/run': Not a directory"):
        make_log(tmp_path / "file" / "run")


def test_tensorboard_gets_scalars_and_pictures(tmp_path, rng):
    image = rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    with make_log(tmp_path) as log:
        log.metrics(3, {"loss": 0.25, "bad": math.nan})
        log.image(3, "masked", image)
        _, _, scalars, picture = read_events(tmp_path)
    values = {value.tag: value.simple_value for value in scalars.summary.value}
    assert scalars.step == picture.step == 3
    assert values["loss"] == 0.25
    assert math.isnan(values["bad"])
    (value,) = picture.summary.value
    assert (value.tag, value.image.height, value.image.width) == ("masked", 6, 9)
    decoded = Image.open(io.BytesIO(value.image.encoded_image_string))
    np.testing.assert_array_equal(np.asarray(decoded), image)
    saved = Image.open(tmp_path / "pictures" / "masked_000003.png")
    np.testing.assert_array_equal(np.asarray(saved), image)


def test_a_quick_restart_keeps_the_old_events_and_hides_later_steps(tmp_path):
    with make_log(tmp_path) as log:
        log.metrics(9, {"loss": 1.0})
    with make_log(tmp_path, start_step=5) as log:
        log.metrics(6, {"loss": 2.0})
    events = read_events(tmp_path)
    steps = [event.step for event in events if event.HasField("summary")]
    starts = [event.step for event in events if event.HasField("session_log")]
    assert sorted(steps) == [6, 9]
    assert sorted(starts) == [1, 6]


def test_no_tensorflow_is_needed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with make_log(tmp_path) as log:
        log.metrics(1, {"loss": 1.0})
        log.image(1, "a", np.zeros((2, 2, 3), np.uint8))
    assert len(read_events(tmp_path)) == 4


def test_a_progress_line_has_rate_and_time_left(tmp_path, capsys, clock):
    with make_log(tmp_path) as log:
        clock.now += 60  # compiling: not part of the rate
        log.progress(1, {"loss": 3.0})
        clock.now += 10
        log.progress(201, {"loss": 0.5123, "lr": 0.0012})
        assert log.images_per_second == 20 * 64
    first, second = capsys.readouterr().out.splitlines()
    assert first == "step 1/1200  0%  loss 3"
    assert second == "step 201/1200  16%  loss 0.512  lr 1.2e-3  1280 images/s  ETA 0:50"


def test_lines_come_at_most_every_ten_seconds_and_at_the_end(tmp_path, capsys, clock):
    with make_log(tmp_path, total_steps=100) as log:
        for step in range(1, 101):
            clock.now += 0.25
            log.progress(step, {})
    steps = [int(line.split()[1].split("/")[0]) for line in capsys.readouterr().out.splitlines()]
    assert steps == [1, 41, 81, 100]


def test_steps_before_a_resume_do_not_count_as_speed(tmp_path, clock):
    with make_log(tmp_path, start_step=1000) as log:
        log.progress(1001, {})
        assert log.images_per_second == 0
        clock.now += 2
        log.progress(1003, {})
        assert log.images_per_second == 64


def test_the_rate_forgets_what_is_long_ago(tmp_path, clock):
    with make_log(tmp_path) as log:
        for step in range(1, 200):
            clock.now += 10.0 if step < 100 else 1.0
            log.progress(step, {})
        assert log.images_per_second == pytest.approx(64)


def test_text_goes_to_the_terminal_and_to_the_log(tmp_path, capsys):
    line = "weights: [bold] " + "x" * 200
    with make_log(tmp_path) as log:
        log.text(line)
    assert capsys.readouterr().out == line + "\n"
    (written,) = (tmp_path / "log.txt").read_text().splitlines()
    assert written.endswith(line)


def test_warnings_of_the_package_become_lines(tmp_path, capsys):
    logger = logging.getLogger("vadapt")
    with make_log(tmp_path):
        logging.getLogger("vadapt.data").warning("%s is corrupt", "a.png")
        logging.getLogger("other").debug("not ours")
    assert capsys.readouterr().out == "warning: a.png is corrupt [vadapt.data]\n"
    assert "a.png is corrupt" in (tmp_path / "log.txt").read_text()
    assert logger.handlers == []
    assert logger.propagate


def test_the_bar_shows_steps_and_stays_below_the_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the output for a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with make_log(tmp_path, total_steps=20, progress=None) as log:
        log.progress(19, {"loss": 0.5})
        log.text("a line")
        log.progress(20, {"loss": 0.25})
    out = capsys.readouterr().out
    assert "20/20" in out
    assert "loss 0.25" in out
    assert out.index("a line") < out.rindex("20/20")


def test_an_inactive_log_does_nothing(tmp_path, capsys):
    with make_log(tmp_path / "none", active=False, wandb={}) as log:
        log.text("a")
        log.metrics(1, {"loss": 1.0})
        log.image(1, "a", np.zeros((2, 2, 3), np.uint8))
        log.progress(1, {})
        assert log.images_per_second == 0
    assert not (tmp_path / "none").exists()
    assert capsys.readouterr().out == ""
    log.close()


def test_wandb_gets_everything_and_a_resumed_run_goes_on(tmp_path, fake_wandb):
    settings = {"wandb": {"project": "p", "name": "r", "entity": ""}, "config": {"a": 1}}
    with make_log(tmp_path, **settings) as log:
        log.metrics(1, {"loss": 0.5})
        log.image(1, "out", np.zeros((2, 3, 3), np.uint8))
    make_log(tmp_path, start_step=1, **settings).close()
    first, second = fake_wandb.inits
    assert first["project"] == "p"
    assert first["config"] == {"a": 1}
    assert (first["name"], first["id"], first["resume"]) == ("r", None, None)
    assert (second["id"], second["resume"]) == ("run7", "allow")
    assert fake_wandb.logged == [(1, {"loss": 0.5}), (1, {"out": ("image", (2, 3, 3))})]
    assert len(fake_wandb.finished) == 2


def test_missing_wandb_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        make_log(tmp_path, wandb={})
    assert logging.getLogger("vadapt").handlers == []
