"""Several processes: how they find each other, and that they learn what one process does."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from tests.training.toy import ToyTask, toy_config
from vadapt.errors import ConfigError
from vadapt.training import distributed, loop
from vadapt.training.checkpoint import Checkpoints

# Two processes sum the gradients of the halves of a batch, over a few dozen steps of float32.
SHARDED = 1e-4
TOY = [sys.executable, "-m", "tests.training.toy"]


def spawn(number, address, command, count=2):
    """One of several processes, with one CPU device each."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(number),
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def free_address():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


def finish(processes, timeout=120):
    """Their outputs, when all have ended as they should."""
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return outputs


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_learn_what_one_does(tmp_path):
    address = free_address()
    command = [*TOY, str(tmp_path / "two"), "24", "0"]
    (said, _), (other, _) = finish([spawn(number, address, command) for number in (0, 1)])
    assert "2 x cpu; 2 processes; mesh data=2" in said
    assert "step" not in other
    config = toy_config(total_steps=24, run={"log_every": 1})
    loop.fit(ToyTask(config), config, tmp_path / "one", devices=jax.devices()[:1])
    one, two = ([line["loss"] for line in lines(tmp_path / name)] for name in ("one", "two"))
    assert len(two) == 24
    np.testing.assert_allclose(two, one, atol=SHARDED)


def test_two_processes_run_a_config_from_the_command_line(tmp_path):
    settings = {
        "total_steps": 3,
        "batch_size": 16,
        "model.weights": "",
        "data.num_scenes": 64,
        "data.image_size": "32,32",
        "task.decoder_depth": 1,
        "eval.probe_scenes": 16,
        "parallel.fsdp": 2,
    }
    command = [sys.executable, "-m", "vadapt.main", "--config=configs/pad_msip.py:scenes"]
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    command += [f"--workdir={tmp_path}"]
    address = free_address()
    (said, _), (other, _) = finish([spawn(number, address, command) for number in (0, 1)])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["steps"] == 3
    assert 0 < result["probe/frozen"] < 1
    assert (tmp_path / "adapter.safetensors").exists()
    assert "probe_accuracy" in said
    assert "probe" not in other


def test_sigterm_to_one_of_two_processes_stops_both_at_one_step(tmp_path):
    address = free_address()
    command = [*TOY, str(tmp_path), "100000", "0.01"]
    processes = [spawn(number, address, command) for number in (0, 1)]
    file = tmp_path / "metrics.jsonl"
    while processes[0].poll() is None and not (file.exists() and file.read_text().count("\n") > 3):
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    (said, _), _ = finish(processes)
    step = Checkpoints(tmp_path / "checkpoints").latest()
    assert f"stopped by a signal after step {step}, saved; the same command goes on" in said
    assert lines(tmp_path)[-1]["step"] == step


def test_a_process_that_fails_waits_for_nobody():
    code = (
        "from vadapt.training import distributed as d; import jax; d.start(timeout=60)\n"
        "jax.process_index() or __import__('time').sleep(300)\n"
        "d.leave_at_once()"
    )
    address = free_address()
    waiting, failed = (spawn(number, address, [sys.executable, "-c", code]) for number in (0, 1))
    try:
        failed.communicate(timeout=60)
    finally:
        waiting.kill()
        waiting.communicate()
    assert failed.returncode == 1


@pytest.mark.parametrize("number", [0, 1])
def test_a_process_whose_partner_does_not_come_says_so(number):
    code = "from vadapt.training import distributed; distributed.start(timeout=2)"
    process = spawn(number, free_address(), [sys.executable, "-c", code])
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"ConfigError: process {number} of 2 at 127.0.0.1" in errors
    assert "waited 2 s for the others in vain" in errors


@pytest.fixture
def joined(monkeypatch):
    """What jax.distributed.initialize was called with; nothing in the environment says anything."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    for name in os.environ:
        if name.startswith(("JAX_", "SLURM_", "TPU_", "MEGASCALE_")):
            monkeypatch.delenv(name)
    return calls


def name_processes(monkeypatch, address, count, number):
    for name, value in zip(distributed.VARIABLES, (address, count, number), strict=True):
        monkeypatch.setenv(name, value)


def test_a_single_host_joins_nothing(joined, monkeypatch):
    distributed.start()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    distributed.start()
    name_processes(monkeypatch, "127.0.0.1:1234", "1", "0")
    distributed.start()
    assert joined == []


def test_the_variables_name_the_processes(joined, monkeypatch):
    name_processes(monkeypatch, "host:1234", "4", "3")
    distributed.start(timeout=7)
    (call,) = joined
    assert call["coordinator_address"] == "host:1234"
    assert (call["num_processes"], call["process_id"]) == (4, 3)
    assert call["initialization_timeout"] > 7


def test_slurm_tasks_are_left_to_jax(joined, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    distributed.start()  # salloc without srun: one process
    assert joined == []
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-4]")
    distributed.start()
    assert [list(call) for call in joined] == [["initialization_timeout"]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("host:1234", "2", ""), "JAX_PROCESS_ID missing; set all of"),
        (("", "2", "0"), "JAX_COORDINATOR_ADDRESS missing"),
        (("host:1234", "2", "2"), "JAX_PROCESS_ID='2'; expected .* from 0 to one less"),
        (("host:1234", "two", "0"), "JAX_NUM_PROCESSES='two'"),
        (("host", "2", "0"), "expected host:port"),
    ],
)
def test_incomplete_variables_are_named(joined, monkeypatch, values, message):
    name_processes(monkeypatch, *values)
    with pytest.raises(ConfigError, match=message):
        distributed.start()
    assert joined == []


def test_tpu_hosts_are_counted(monkeypatch, tmp_path):
    assert distributed.tpu_hosts({}) == 1  # no chips here
    (tmp_path / "accel0").touch()
    monkeypatch.setattr(distributed, "_DEVICES", tmp_path)
    monkeypatch.setattr(distributed, "_ask_gce", lambda attribute: "id:1:a,id:2:b,id:3:c")
    assert distributed.tpu_hosts({"TPU_WORKER_HOSTNAMES": "localhost"}) == 1
    assert distributed.tpu_hosts({"TPU_WORKER_HOSTNAMES": "a,b", "MEGASCALE_NUM_SLICES": "2"}) == 4
    assert distributed.tpu_hosts({}) == 3
    assert distributed.tpu_hosts({"JAX_PLATFORMS": "cpu"}) == 1
